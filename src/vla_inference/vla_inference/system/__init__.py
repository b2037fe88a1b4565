"""Operating-system services: files, locks, interrupts, worker processes."""
