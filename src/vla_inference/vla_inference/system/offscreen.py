"""Checks in a separate process whether MuJoCo can render without a screen."""

from __future__ import annotations

import os
import subprocess
import sys

WAYS = ("egl", "osmesa")  # values of MUJOCO_GL that need no screen
FRAME = """
import os
try:
    import mujoco
    world = '<mujoco><worldbody><geom size="1"/></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(world)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 16, 16) as renderer:
        renderer.update_scene(data)
        assert renderer.render().any(), "the frame is black"
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(1)
"""


def why_not(way: str) -> str:
    """Why no frame can be rendered with MUJOCO_GL=`way`; empty: it can. way "": unset."""
    env = {**os.environ, "MUJOCO_GL": way}
    env.pop("PYOPENGL_PLATFORM", None)  # MuJoCo sets it to the way that this process draws
    try:
        done = subprocess.run(
            [sys.executable, "-c", FRAME], capture_output=True, text=True, env=env, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "no frame within 60 s"
    if not done.returncode:
        return ""
    return done.stdout.strip() or f"exit status {done.returncode}"


def working_ways() -> list[str]:
    return [way for way in WAYS if not why_not(way)]


if __name__ == "__main__":
    print(*working_ways())
