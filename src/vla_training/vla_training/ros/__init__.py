"""Nodes for recording, training and validation."""
