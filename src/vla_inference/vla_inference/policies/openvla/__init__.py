"""The OpenVLA family: OpenVLA (arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645)."""
