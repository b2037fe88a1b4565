"""Trains the estimate of progress and success (`vla_inference.estimate`)."""
