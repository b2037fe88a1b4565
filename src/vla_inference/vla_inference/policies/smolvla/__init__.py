"""The policy family SmolVLA."""
