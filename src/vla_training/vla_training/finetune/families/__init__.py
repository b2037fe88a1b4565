"""The door by which a policy family brings its training, and who came in by it."""
