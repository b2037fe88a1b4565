"""The files of a bag: where they are, how they are stored, compressed or damaged."""
