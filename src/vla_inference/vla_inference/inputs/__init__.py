"""What a policy observes: images, their times, the robot's state."""
