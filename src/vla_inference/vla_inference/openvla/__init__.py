"""OpenVLA's network in plain PyTorch, its config, and the coding of its inputs and actions."""
