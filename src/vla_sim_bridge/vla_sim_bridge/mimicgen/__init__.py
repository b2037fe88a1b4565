"""MimicGen: new demonstrations from parts of given ones (arXiv 2310.17596)."""
