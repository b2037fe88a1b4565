"""Training runs in Prismatic's own layout: config.json, checkpoints/*.pt, and MiniVLA's vq/."""
