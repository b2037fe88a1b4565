"""Renders camera images of a simulated world."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import sys
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_inference.errors import VlaError


def _has_osmesa() -> bool:
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


GPU = os.path.exists("/dev/nvidia0")
# MuJoCo picks its way of drawing at import. Without a screen that is OSMesa where it is installed
# and there is no GPU, else EGL.
if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
    os.environ["MUJOCO_GL"] = "osmesa" if not GPU and _has_osmesa() else "egl"
if not GPU:  # Triton's LLVM crashes when it is loaded after the one that Mesa draws with
    with contextlib.suppress(ImportError):
        importlib.import_module("triton._C.libtriton")
WAY = os.environ.get("MUJOCO_GL", "")  # robosuite may write another, too late

_open: weakref.WeakSet = weakref.WeakSet()  # renderers that nobody has closed yet


def close_renderers() -> None:
    """Closes every renderer of this process at exit, while OpenGL still exists."""
    for renderer in list(_open):
        renderer.close()
    _open.clear()


def _close_at_exit(renderer) -> None:
    """Registers after MuJoCo's own `atexit` handler, which ends EGL, so that this runs first."""
    _open.add(renderer)
    atexit.unregister(close_renderers)
    atexit.register(close_renderers)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns OpenGL errors in this block into one error with a remedy."""
    hook = sys.unraisablehook
    try:
        sys.unraisablehook = lambda _: None  # a half-made renderer complains when it goes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)  # a half-made renderer goes now, in silence
        raise
    except Exception as error:  # of OpenGL's, ctypes' or MuJoCo's, at import or later
        traceback.clear_frames(error.__traceback__)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        remedy = "set MUJOCO_GL=egl or MUJOCO_GL=osmesa; `vla doctor` tells which one works"
        if not os.environ.get("DISPLAY"):
            remedy = f"there is no display: {remedy}"
        raise VlaError(f"MuJoCo cannot draw with MUJOCO_GL={WAY} ({reason})", remedy) from error
    finally:
        sys.unraisablehook = hook


class Renderer:
    """Renders a MuJoCo model; width and height in pixels are defaults for all calls."""

    def __init__(self, model, data, width: int, height: int):
        self.model, self.data, self.width, self.height = model, data, width, height
        self._renderers: dict[tuple[int, int], Any] = {}  # mujoco.Renderer

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright.

        An own renderer rather than robosuite's: collision geoms and reflections left out, which
        more than doubles the rate on a CPU; the same one makes training data and evaluations.
        """
        import mujoco

        size = (height or self.height, width or self.width)
        renderer = self._renderers.get(size)
        if renderer is None:
            self.model.vis.global_.offheight = max(size[0], self.model.vis.global_.offheight)
            self.model.vis.global_.offwidth = max(size[1], self.model.vis.global_.offwidth)
            self.model.vis.quality.offsamples = 0
            with explained():
                renderer = mujoco.Renderer(self.model, *size)
            _close_at_exit(renderer)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._renderers[size] = renderer
            self._visible = mujoco.MjvOption()
            self._visible.geomgroup[0] = 0
            self._visible.sitegroup[:] = 0
        renderer.update_scene(self.data, camera, self._visible)
        return renderer.render()

    def camera_matrix(self, camera: str) -> np.ndarray:
        """The 3 x 3 pinhole matrix of a camera, in pixels."""
        fovy = np.deg2rad(self.model.camera(camera).fovy[0])
        f = self.height / 2 / np.tan(fovy / 2)
        return np.array([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
