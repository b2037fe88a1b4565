"""Measuring how fast models run."""
