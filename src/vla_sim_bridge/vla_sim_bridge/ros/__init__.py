"""The simulation node and its parts."""
