"""What the packages need of the operating system: files, locks, interrupts, worker processes."""
