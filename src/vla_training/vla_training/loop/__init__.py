"""The training loop that every model shares: schedule, state, processes, log, graceful stop."""
