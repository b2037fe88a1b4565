"""Scripted pick and place in LIBERO; runs under LIBERO's Python, and imports nothing of ours."""
