"""Models by family, and what their actions mean."""
