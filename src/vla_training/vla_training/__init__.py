"""Datasets, training and offline evaluation of VLA models."""

import vla_inference  # noqa: F401  for its settings of OpenMP, which must come before PyTorch
