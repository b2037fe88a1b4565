"""The estimate node: how far the running task is, and whether it is done."""
