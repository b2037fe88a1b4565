"""From one dataset format to another."""
