"""Serves the environments of an installed package over pipes to `process.py`.

This file runs under the other Python (3.8 on, a robosuite of its own, none of our packages) with
the path of a second file, whose class `Server` makes the package's environments. Our side imports
the framing from here. A frame is

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
NAME = "vla_sim_bridge.envs.other_python.server"  # by which the second file imports this one


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


class RobosuiteServer:
    """At most one environment of robosuite, with a method for each request `do`.

    A package's `Server` adds `hello`, `make` and `reset`. robosuite: the version that it needs.
    """

    robosuite = "1.4"
    requests: tuple[str, ...] = ("hello", "make", "reset", "step", "render", "state", "set_state")

    def __init__(self):
        self.env = None  # robosuite's

    def versions(self, package):
        """Of Python, robosuite and mujoco; a Refusal if the package cannot run on them."""
        try:
            import mujoco
            import robosuite
        except ImportError as error:
            remedy = f"install robosuite {self.robosuite} and the mujoco that it needs there"
            raise Refusal(f"robosuite cannot be imported ({error})", remedy) from error
        version = robosuite.__version__
        if not version.startswith(self.robosuite + "."):
            raise Refusal(f"robosuite is {version}", f"{package} needs {self.robosuite} there")
        return {
            "python": sys.version.split()[0],
            "robosuite": version,
            "mujoco": mujoco.__version__,
        }

    def cameras(self):
        """Vertical field of view by camera name, degrees."""
        model = self.env.sim.model
        return {n: float(model.cam_fovy[i]) for i, n in enumerate(model.camera_names)}

    @staticmethod
    def seed(number):
        """robosuite 1.4 and what builds on it draw from the global generators."""
        import random

        random.seed(number)
        np.random.seed(number)

    def step(self, request, arrays):
        """arrays: action [7] as the environment takes it."""
        self.env.step(arrays["action"])
        return self.now()

    def render(self, request, arrays):
        """Upright: OpenGL begins with the lowest row."""
        size = {"width": request["width"], "height": request["height"]}
        image = self.env.sim.render(camera_name=request["camera"], **size)
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
        return self.now()

    def now(self):
        """Success, and where the robot is."""
        return {"success": bool(self.env._check_success())}, self.robot()

    def robot(self):
        """Its pose: m and rotation matrices in the world."""
        sim, robot = self.env.sim, self.env.robots[0]
        where = {
            "eef_position": sim.data.site_xpos[robot.eef_site_id],
            "eef_rotation": np.reshape(sim.data.site_xmat[robot.eef_site_id], (3, 3)),
            "base_position": sim.data.get_body_xpos("robot0_base"),
            "base_rotation": np.reshape(sim.data.get_body_xmat("robot0_base"), (3, 3)),
            "fingers": sim.data.qpos[robot._ref_gripper_joint_pos_indexes],
        }
        return {name: np.asarray(value, np.float64) for name, value in where.items()}


def serve(server, receive, send):
    """Answers until the pipe ends. Errors are reported and survived."""
    while True:
        request, arrays = read_frame(receive)
        try:
            if request["do"] not in server.requests:
                raise Refusal(f"there is no request {request['do']!r}")
            reply, out = getattr(server, request["do"])(request, arrays)
        except Refusal as refusal:
            reply, out = {"error": refusal.args[0], "remedy": "".join(refusal.args[1:])}, {}
        except Exception as error:  # the package and robosuite raise all kinds
            import traceback

            traceback.print_exc()
            reply, out = {"error": f"{type(error).__name__}: {error}", "remedy": ""}, {}
        write_frame(send, reply, out)


def load_server(path):
    """The `Server` of a package's file."""
    from importlib.util import module_from_spec, spec_from_file_location

    sys.modules[NAME] = sys.modules[__name__]
    ours = type(sys)("vla_sim_bridge")  # so that it can import modules beside it
    ours.__path__ = [os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))]
    sys.modules[ours.__name__] = ours
    spec = spec_from_file_location("package_server", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Server()


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

    serve(load_server(sys.argv[1]), receive, send)


if __name__ == "__main__":
    main()
