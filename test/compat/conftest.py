"""Fixtures of the compatibility tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from demonstrations import write_set


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Three short episodes in robomimic's layout."""
    return write_set(tmp_path_factory.mktemp("source") / "demo.hdf5")
