"""`engine: torch` on an NVIDIA GPU."""
