"""Datasets in every format, read as episodes: `open_dataset(path)`."""

from vla_training.datasets.base import EpisodeSet, open_dataset

__all__ = ["EpisodeSet", "open_dataset"]
