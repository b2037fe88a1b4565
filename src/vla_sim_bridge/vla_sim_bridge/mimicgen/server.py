"""Serves the environments of an installed `mimicgen` package over pipes to `process.py`.

This one file runs under the user's other Python (3.8 on; robosuite 1.4 and what registers its
environments, none of our packages); our side imports the framing from it. A frame is

    b"VLAw", uint32 length of the header, header (JSON), the bytes of its arrays one after another

all little-endian. `arrays` in the header lists [name, type, shape] of each. One request, one
reply. Nothing that comes over the pipe is ever run or unpickled.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # modules beside this file must not hide the requested ones
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != _here]

import json
import struct

import numpy as np

MAGIC = b"VLAw"
HEAD = struct.Struct("<4sI")
MAX_HEADER = 1 << 20  # bytes
MAX_ARRAY = 1 << 28
TYPES = ("uint8", "float32", "float64")
ROBOT, ROBOSUITE = "Panda", "1.4"


class FrameError(Exception):
    """Data from the pipe that is not a frame."""


def write_frame(send, header, arrays=None):
    """send: writes all of the bytes. header: dict. arrays: name -> array of one of `TYPES`."""
    arrays = {n: np.ascontiguousarray(a) for n, a in (arrays or {}).items()}
    listed = [[n, a.dtype.name, list(a.shape)] for n, a in arrays.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    send(HEAD.pack(MAGIC, len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))


def read_frame(receive):
    """receive: returns exactly this many bytes. Returns the header and its arrays by name."""
    magic, length = HEAD.unpack(receive(HEAD.size))
    if magic != MAGIC or length > MAX_HEADER:
        raise FrameError(f"the frame begins with {magic!r}")
    try:
        header = json.loads(receive(length).decode())
        shapes = [(str(n), TYPES.index(t), [int(k) for k in s]) for n, t, s in header["arrays"]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise FrameError(f"its header cannot be read ({error})") from error
    arrays = {}
    for name, kind, shape in shapes:
        dtype, size = np.dtype(TYPES[kind]), 1
        for k in shape:
            size *= k
        if any(not 0 <= k <= MAX_ARRAY for k in shape) or size * dtype.itemsize > MAX_ARRAY:
            raise FrameError(f"array {name} is of shape {shape}")
        arrays[name] = np.frombuffer(receive(size * dtype.itemsize), dtype).reshape(shape).copy()
    return header, arrays


class Refusal(Exception):
    """A problem in words for the user, and a remedy if known."""


class World:
    """At most one environment, with a method for each request `do`."""

    def __init__(self):
        self.env = None

    def hello(self, request, arrays):
        """Versions, and every environment that robosuite knows after importing the package."""
        package = request["package"]
        try:
            import mujoco
            import robosuite
        except ImportError as error:
            remedy = "install robosuite 1.4 and the mujoco that it needs there"
            raise Refusal(f"robosuite cannot be imported ({error})", remedy) from error
        version = robosuite.__version__
        if not version.startswith(ROBOSUITE + "."):
            raise Refusal("robosuite is " + version, f"{package} needs 1.4 there")
        from robosuite.environments.base import REGISTERED_ENVS

        own = set(REGISTERED_ENVS)
        try:
            __import__(package)
        except ImportError as error:
            remedy = "install it there, its licence permitting"
            raise Refusal(f"{package} cannot be imported ({error})", remedy) from error
        return {
            "python": sys.version.split()[0],
            "robosuite": version,
            "mujoco": mujoco.__version__,
            "environments": sorted(set(REGISTERED_ENVS) - own),
        }, {}

    def make(self, request, arrays):
        import robosuite

        self.env = robosuite.make(
            request["env"],
            robots=ROBOT,
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            ignore_done=True,
            control_freq=request["control_freq"],
        )
        sim = self.env.sim
        fovy = {n: float(sim.model.cam_fovy[i]) for i, n in enumerate(sim.model.camera_names)}
        return {"fovy": fovy}, {}

    def reset(self, request, arrays):
        """robosuite 1.4 and what builds on it draw from the global generators."""
        import random

        random.seed(request["seed"])
        np.random.seed(request["seed"])
        self.env.reset()
        return self._now()

    def step(self, request, arrays):
        """arrays: action [7] as the environment takes it."""
        self.env.step(arrays["action"])
        return self._now()

    def render(self, request, arrays):
        """Upright: OpenGL begins with the lowest row."""
        image = self.env.sim.render(
            camera_name=request["camera"], width=request["width"], height=request["height"]
        )
        return {}, {"image": np.asarray(image, np.uint8)[::-1]}

    def state(self, request, arrays):
        return {}, {"state": np.asarray(self.env.sim.get_state().flatten(), np.float64)}

    def set_state(self, request, arrays):
        have = self.env.sim.get_state().flatten().size
        if arrays["state"].shape != (have,):
            raise Refusal(
                f"the state has {arrays['state'].size} numbers, this world has {have}",
                "it belongs to another task or version",
            )
        self.env.sim.set_state_from_flattened(arrays["state"])
        self.env.sim.forward()
        return self._now()

    def _now(self):
        """Success, and the robot's pose: m and rotation matrices in the world."""
        sim, robot = self.env.sim, self.env.robots[0]
        where = {
            "eef_position": sim.data.site_xpos[robot.eef_site_id],
            "eef_rotation": np.reshape(sim.data.site_xmat[robot.eef_site_id], (3, 3)),
            "base_position": sim.data.get_body_xpos("robot0_base"),
            "base_rotation": np.reshape(sim.data.get_body_xmat("robot0_base"), (3, 3)),
            "fingers": sim.data.qpos[robot._ref_gripper_joint_pos_indexes],
        }
        where = {name: np.asarray(value, np.float64) for name, value in where.items()}
        return {"success": bool(self.env._check_success())}, where


def serve(world, receive, send):
    """Answers until the pipe ends. Errors are reported and survived."""
    requests = ("hello", "make", "reset", "step", "render", "state", "set_state")
    while True:
        request, arrays = read_frame(receive)
        try:
            if request["do"] not in requests:
                raise Refusal(f"there is no request {request['do']!r}")
            reply, out = getattr(world, request["do"])(request, arrays)
        except Refusal as refusal:
            reply, out = {"error": refusal.args[0], "remedy": "".join(refusal.args[1:])}, {}
        except Exception as error:  # the package and robosuite raise all kinds
            import traceback

            traceback.print_exc()
            reply, out = {"error": f"{type(error).__name__}: {error}", "remedy": ""}, {}
        write_frame(send, reply, out)


def main():
    """Requests on stdin, replies on the original stdout; prints go to stderr."""
    out = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)

    def receive(count):
        data = sys.stdin.buffer.read(count)
        if len(data) < count:  # the client has gone
            sys.exit(0)
        return data

    def send(data):
        view = memoryview(data)
        while view:
            view = view[out.write(view) :]

    serve(World(), receive, send)


if __name__ == "__main__":
    main()
