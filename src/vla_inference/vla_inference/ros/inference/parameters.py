"""The inference node's parameters, and the settings made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import IntegerRange

from vla_inference.inputs.robot_state import StateLayout
from vla_inference.policies.base import LoadOptions
from vla_inference.ros.parameters import SECONDS, Table, names
from vla_inference.serving.model_thread import ModelSettings

# Read when the node is configured.
AT_CONFIGURE: Table = {
    "model": ("", "checkpoint folder", None),
    "unnorm_key": ("", "statistics to un-normalise with; empty: the only ones there are", None),
    "device": ("", "cpu, cuda, cuda:1 ...; empty: CUDA where there is one", None),
    "dtype": ("", "float32, bfloat16 or float16; empty: the device's usual one", None),
    "engine": ("", "plain, torch, tvm:FOLDER or mlc:FOLDER; empty: torch where it can run", None),
    "vision": (
        "",
        "onnx:FOLDER or tensorrt:FOLDER; empty: the engine's own vision encoders",
        None,
    ),
    "quantization": ("", "int4, int8, fp8 ...; empty: as the weights are stored", None),
    "draft": (False, "try the last action's tokens first (engine plain)", None),
    "num_threads": (
        0,
        "CPU threads of the model; 0: as many as PyTorch likes",
        IntegerRange(from_value=0, to_value=256),
    ),
    "model_root": ("", "folder ~/load_model may load from; empty: it refuses", None),
    "image_transport": ("raw", "raw (topic image) or compressed (topic image/compressed)", None),
    "cameras": (["image"], "topics of the cameras, in the order the model takes them", None),
    "history": (
        0,
        "past images of each camera that the model takes after the present ones, newest first",
        IntegerRange(from_value=0, to_value=64),
    ),
    "history_interval": (0.1, "time between these [s]", SECONDS),
    "state": (
        [""],
        "parts of the robot's state, in the model's order: position, axis_angle (LIBERO's), "
        "rotvec, rpy, quaternion (of current_pose), joints (of joint_states); ['']: none",
        None,
    ),
    "joint_names": ([""], "the joints of part joints, in the model's order", None),
    "tolerance": (0.05, "by which stamps of one moment may differ [s]", SECONDS),
    "frame_id": ("", "frame of the deltas, such as base; empty: what the checkpoint says", None),
    "instruction": ("", "instruction until another one comes", None),
}
# May be set at any time.
AT_ONCE: Table = {
    "max_image_age": (
        1.0,
        "refuse images whose stamp is older than this by our clock [s]; 0: any age",
        SECONDS,
    ),
    "max_same_image": (
        0.5,
        "refuse images once a camera has shown the very same one for so long [s]: it is frozen; "
        "0: never. Not looked at with use_sim_time: simulated images repeat",
        SECONDS,
    ),
}


def read_layout(value: Callable[[str], Any]) -> StateLayout:
    return StateLayout(names(value("state")), names(value("joint_names")))


def read_settings(
    value: Callable[[str], Any], model: str, unnorm_key: str, layout: StateLayout
) -> ModelSettings:
    """value: gives a parameter's value by its name."""
    names = ("device", "dtype", "engine", "vision", "quantization", "draft")
    options = LoadOptions(**{name: value(name) for name in names}, action_space=unnorm_key)
    return ModelSettings(
        model=model,
        options=options,
        num_threads=value("num_threads"),
        images=len(value("cameras")) * (1 + value("history")),
        state_dim=len(layout),
    )
