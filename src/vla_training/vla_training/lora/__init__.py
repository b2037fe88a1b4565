"""Low-rank adapters: layers, files, merging, and peft's own."""
