"""Episodes of a model in which a stand-in for a person takes over where it errs."""
