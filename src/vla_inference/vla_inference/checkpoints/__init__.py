"""Checkpoint folders: loading, saving, published layouts, safetensors."""
