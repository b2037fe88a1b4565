"""Datasets, training and offline evaluation of VLA models."""
