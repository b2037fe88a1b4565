"""Where the packages of a sourced workspace are installed."""

from __future__ import annotations

import os
from pathlib import Path


def prefixes() -> list[Path]:
    """The install prefixes in AMENT_PREFIX_PATH, the one that counts first."""
    return [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]


def share_folders(package: str, *inner: str) -> list[Path]:
    """Those of PREFIX/share/PACKAGE/INNER... that exist."""
    return [f for p in prefixes() if (f := p.joinpath("share", package, *inner)).is_dir()]
