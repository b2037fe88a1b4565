"""The CUDA engine of the flow-matching families: what they share."""
