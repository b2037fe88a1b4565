"""Episodes on disk, in the one layout that both simulation and training know."""
