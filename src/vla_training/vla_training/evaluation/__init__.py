"""Offline evaluation and bag validation."""
