"""A policy of Octo's kind: a vision transformer with a readout, and a diffusion head."""
