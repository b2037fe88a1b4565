"""Fine-tuning of OpenVLA, OpenVLA-OFT and the small model."""
