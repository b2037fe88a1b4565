"""Training of the small model that ships."""
