"""Fine-tuning of checkpoints: LoRA, QLoRA or all weights, on one GPU or many."""
