"""Episodes that end in many ways, for who has to tell whether a task is done."""
