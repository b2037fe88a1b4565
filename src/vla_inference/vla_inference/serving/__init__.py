"""Runs a loaded model in its own thread, and counts what it does."""
