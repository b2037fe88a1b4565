"""A loaded model in a thread of its own, and what it counts."""
