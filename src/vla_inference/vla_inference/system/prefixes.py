"""Where the packages of a sourced workspace are installed."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path


def prefixes() -> list[Path]:
    """The install prefixes in AMENT_PREFIX_PATH, the one that counts first; then pip's."""
    said = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    of_pip = Path(sysconfig.get_path("data"))
    return said if of_pip in said else [*said, of_pip]


def share_folders(package: str, *inner: str) -> list[Path]:
    """Those of PREFIX/share/PACKAGE/INNER... that exist."""
    return [f for p in prefixes() if (f := p.joinpath("share", package, *inner)).is_dir()]
