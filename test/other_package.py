"""The package in test/plugins, which brings a policy family and outputs, installed for a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"


def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For this process and those that it starts; a fixture yields from it."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    paths = [str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield
    for name in [n for n in sys.modules if n.startswith("wave_policy")]:
        del sys.modules[name]
