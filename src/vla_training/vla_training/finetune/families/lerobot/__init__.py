"""Fine-tuning of LeRobot's families: what they have in common."""
