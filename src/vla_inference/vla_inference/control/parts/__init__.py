"""Controllers of a robot's parts: a chunk's numbers for one part in, its commands out."""
