"""Players of chunks: what of them is due in a command period."""
