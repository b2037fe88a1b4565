"""Latency benchmarks of models and engines."""
