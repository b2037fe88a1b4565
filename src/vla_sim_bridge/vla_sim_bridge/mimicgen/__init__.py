"""MimicGen: the method here, and the original package in a process of its own."""
