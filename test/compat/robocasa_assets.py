"""Stand-ins for RoboCasa's assets (10 GB, on no package index), so that its own code runs.

Runs under the Python that has `robocasa`, and does nothing where assets are. Textures are grey,
every object is a small block, every kitchen is one wall with a counter, drawers and a cabinet,
whose models come with the package. Success rules, sentences, cameras and the robot are its own.
"""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

LAYOUT = """
room:
  walls:
    - {name: wall, type: wall, size: [1.75, 1.5, 0.02], pos: [1.75, 0, 1.5]}
    - {name: left, type: wall, wall_side: left, size: [1.5, 1.5, 0.02], pos: [0, -1.5, 1.5]}
    - {name: right, type: wall, wall_side: right, size: [1.5, 1.5, 0.02], pos: [3.5, -1.5, 1.5]}
  floor:
    - {name: floor, type: floor, size: [1.75, 1.5, 0.02], pos: [1.75, -1.5, 0]}
main:
  bottom:
    - {name: counter, type: counter, size: [2.5, 0.65, 0.92], pos: [1.75, -0.325, 0.46]}
  cabinets:
    - name: stack
      type: stack
      levels: [drawer, drawer, drawer]
      percentages: [0.3, 0.3, 0.4]
      size: [0.6, 0.6, 0.84]
      pos: [1.75, -0.3, 0.47]
  top:
    - {name: cabinet, type: hinge_cabinet, size: [1.0, 0.4, 0.92], pos: [1.75, -0.2, 1.85]}
"""
STYLE = "cabinet: default\ncounter: default\nfloor: default\nwall: default\n"
LOOK = 'group="1" conaffinity="0" contype="0" mass="0"'
BLOCK = f"""<mujoco model="block"><asset/><worldbody><body>
<body name="object">
 <geom type="box" size="0.02 0.02 0.015" density="300" group="0"/>
 <geom type="box" size="0.02 0.02 0.015" rgba="0.8 0.3 0.2 1" {LOOK}/>
 <geom name="reg_bbox" type="box" pos="0 0 0" size="0.02 0.02 0.015" rgba="0 0 0 0" {LOOK}/>
</body>
<site rgba="0 0 0 0" size="0.005" pos="0 0 -0.015" name="bottom_site"/>
<site rgba="0 0 0 0" size="0.005" pos="0 0 0.015" name="top_site"/>
<site rgba="0 0 0 0" size="0.005" pos="0.02 0.02 0" name="horizontal_radius_site"/>
</body></worldbody></mujoco>"""
A_SPLIT = 2  # objects of each kind: one for either split


def textures(root: Path) -> None:
    """A grey image for each that a model, a registry or the code names."""
    named = set()
    for path in [*(root / "fixtures").rglob("*.yaml"), *root.parent.parent.rglob("*.py")]:
        found = re.findall(r"textures/[\w/]+\.png", path.read_text(encoding="utf-8"))
        named |= {root / name for name in found}
    for path in (root / "fixtures").rglob("*.xml"):
        found = re.findall(r'file="(\S+\.png)"', path.read_text(encoding="utf-8"))
        named |= {(path.parent / name).resolve() for name in found}
    for path in sorted(named):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = 60 + sum(path.name.encode()) % 180
            Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(path)


def kitchens(root: Path) -> None:
    for path in root.glob("scenes/kitchen_layouts/*/*.yaml"):
        path.write_text(LAYOUT)
    for path in root.glob("scenes/kitchen_styles/*/*.yaml"):
        path.write_text(STYLE)


def objects(root: Path) -> None:
    """The same block for every kind of object."""
    from robocasa.models.objects.kitchen_objects import OBJ_CATEGORIES

    for name, kinds in OBJ_CATEGORIES.items():
        for kind in kinds.values():
            for number in range(A_SPLIT):
                path = root / "objects" / kind.reg_type / name / f"{name}_{number}" / "model.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(BLOCK)


def main() -> None:
    spec = importlib.util.find_spec("robocasa")
    root = Path(spec.submodule_search_locations[0], "models", "assets")
    if (root / "objects" / "made").is_file():
        print("stand-ins")
        return
    if (root / "objects").is_dir() and "--again" not in sys.argv:
        print("assets")
        return
    textures(root)
    kitchens(root)
    objects(root)
    (root / "objects" / "made").touch()
    print("stand-ins")


main()
