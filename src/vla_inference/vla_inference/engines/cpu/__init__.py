"""`engine: torch` on a CPU."""
