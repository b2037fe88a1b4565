"""LIBERO and LIBERO-PRO: their suites in a Python of their own, by the benchmark's rules."""
