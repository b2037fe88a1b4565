"""MimicGen: the method, and a bridge to the original package in its own process."""
