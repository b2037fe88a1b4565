"""The environments of an installed `mimicgen` package, in a Python of its own."""
