"""The kitchens of an installed `robocasa` package, in a Python of its own."""
