"""Triton kernels for one observation at a time, for sm_80 and later."""
