"""Takes out of .venv what packages bring and nothing here uses: 0.6 GB.

The simulated arms are Pandas, so the meshes of robosuite's other robots go; so do the test
programs in PyTorch's wheel. An environment that was there before the set-up keeps everything, and
so does one with VLA_UNTRIMMED=1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from workspace_setup.steps import VENV, note_of

MADE = "made"  # note of the stamp "venv": the set-up made it; without that it is its owner's
# Patterns below site-packages, and names among what they match that stay.
UNUSED = {
    "torch/test": (),
    "torch/bin/*[Tt]est*": (),
    "robosuite/models/assets/bullet_data": (),
    "robosuite/models/assets/robots/*": ("panda",),
    "robosuite/models/assets/grippers/meshes/*": ("panda_gripper",),
    "robosuite/models/assets/grippers/obj_meshes": (),
    "robosuite/models/assets/bases/meshes/omron_mobile_base": (),
}


def trim() -> None:
    """Quick where there is nothing left to remove, and safe to stop and call again."""
    if os.environ.get("VLA_UNTRIMMED") == "1" or note_of("venv") != MADE:
        return
    for packages in VENV.glob("lib/python3*/site-packages"):
        for path in unused(packages):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # of another user's, it stays
                    path.unlink()


def unused(packages: Path) -> list[Path]:
    """Files and folders below a site-packages folder that `trim` removes."""
    found = ((p, kept) for pattern, kept in UNUSED.items() for p in packages.glob(pattern))
    return [path for path, kept in found if path.name not in kept]
