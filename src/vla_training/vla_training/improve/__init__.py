"""Rounds in which a model learns from corrections, and is replaced by nothing worse."""
