"""The inference node's parameters, and the settings made from them."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.inputs.robot_state import StateLayout
from vla_inference.options import option
from vla_inference.policies.base import LoadOptions
from vla_inference.ros.parameters import image_transport
from vla_inference.serving.model_thread import ModelSettings

SECONDS = {"low": 0, "high": 3600}


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """The node's parameters."""

    model: str = option("", "checkpoint folder")
    unnorm_key: str = option("", "statistics for un-normalising; empty: the only ones")
    device: str = option("", "cpu, cuda, cuda:1 ...; empty: CUDA if available")
    dtype: str = option("", "float32, bfloat16 or float16; empty: the device's default")
    engine: str = option("", "plain, torch, tvm:FOLDER or mlc:FOLDER; empty: torch if it can run")
    vision: str = option(
        "", "onnx:FOLDER or tensorrt:FOLDER; empty: the engine's own vision encoders"
    )
    quantization: str = option("", "int4, int8, fp8 ...; empty: as the weights are stored")
    draft: bool = option(False, "try the last action's tokens first (engine plain)")
    num_threads: int = option(0, "CPU threads of the model; 0: PyTorch's default", low=0, high=256)
    image_transport: str = image_transport()
    cameras: tuple[str, ...] = option(
        ("image",), "topics of the cameras, in the order the model takes them"
    )
    history: int = option(
        0,
        "past images per camera that the model takes after the current ones, newest first",
        low=0,
        high=64,
    )
    history_interval: float = option(0.1, "time between past images [s]", **SECONDS)
    state: tuple[str, ...] = option(
        (),
        "parts of the robot's state, in the model's order: position, axis_angle (LIBERO's), "
        "rotvec, rpy, quaternion (of current_pose), joints (of joint_states); ['']: none",
    )
    joint_names: tuple[str, ...] = option(
        (), "joint names for the state part joints, in the model's order"
    )
    tolerance: float = option(
        0.05, "maximum difference of stamps of one observation [s]", **SECONDS
    )
    model_root: str = option("", "folder that ~/load_model may load from; empty: it refuses")
    frame_id: str = option("", "frame of the deltas, such as base; empty: as the checkpoint says")
    instruction: str = option("", "instruction until another one arrives")
    max_image_age: float = option(
        1.0,
        "refuse images whose stamp is older than this by the node's clock [s]; 0: any age",
        live=True,
        **SECONDS,
    )
    max_same_image: float = option(
        0.5,
        "refuse images once a camera has repeated exactly the same one for this long [s]: it "
        "is frozen; 0: never. Off with use_sim_time, because simulated images repeat",
        live=True,
        **SECONDS,
    )

    @property
    def layout(self) -> StateLayout:
        return StateLayout(self.state, self.joint_names)

    def settings(self, model: str, unnorm_key: str) -> ModelSettings:
        """Of this model, which need not be the one that the parameters name."""
        return ModelSettings(
            model=model,
            options=LoadOptions(
                device=self.device,
                dtype=self.dtype,
                engine=self.engine,
                vision=self.vision,
                quantization=self.quantization,
                draft=self.draft,
                action_space=unnorm_key,
            ),
            num_threads=self.num_threads,
            images=len(self.cameras) * (1 + self.history),
            state_dim=len(self.layout),
        )
