"""`vla study`: which training data helps most."""
