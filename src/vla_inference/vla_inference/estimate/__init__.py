"""How far a task is and whether it is done, as read off images and sentence."""
