"""The inference node's parameters, and the settings made from them."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.inputs.robot_state import StateLayout
from vla_inference.options import option
from vla_inference.policies.base import LoadOptions, RunOptions
from vla_inference.policies.chunking import FORMS, RealTimeChunking, RunningChunk
from vla_inference.ros.parameters import image_transport, seconds
from vla_inference.serving.model_thread import ModelSettings
from vla_inference.serving.openpi.settings import ServeSettings


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(RunOptions):
    """The node's parameters."""

    model: str = option("", "checkpoint folder")
    unnorm_key: str = option("", "statistics for un-normalising; empty: the only ones")
    num_threads: int = option(0, "CPU threads of the model; 0: PyTorch's default", low=0, high=256)
    image_transport: str = image_transport()
    cameras: tuple[str, ...] = option(
        ("image",), "topics of the cameras, in the order the model takes them"
    )
    history: int = option(
        0,
        "past images per camera that the model takes after the current ones, newest first; a new "
        "past begins with an activation and with a stamp that goes back: until it reaches back so "
        "far, its first image stands in",
        low=0,
        high=64,
    )
    history_interval: float = seconds(
        0.1,
        "time between past images [s]; an image is refused while one of its past is further than "
        "a third of this from its time",
    )
    state: tuple[str, ...] = option(
        (),
        "parts of the robot's state, in the model's order: position, axis_angle (LIBERO's), "
        "rotvec, rpy, quaternion (of current_pose), joints (of joint_states); ['']: none",
    )
    joint_names: tuple[str, ...] = option(
        (), "joint names for the state part joints, in the model's order"
    )
    tolerance: float = seconds(0.05, "maximum difference of stamps of one observation [s]")
    model_root: str = option("", "folder that ~/load_model may load from; empty: it refuses")
    frame_id: str = option("", "frame of the deltas, such as base; empty: as the checkpoint says")
    instruction: str = option("", "instruction until another one arrives")
    max_image_age: float = seconds(
        1.0,
        "refuse images whose stamp is older than this by the node's clock [s]; 0: any age",
        live=True,
    )
    max_same_image: float = seconds(
        0.5,
        "refuse images once a camera has repeated exactly the same one for this long [s]: it "
        "is frozen; 0: never. Off with use_sim_time, because simulated images repeat",
        live=True,
    )

    chunking: str = option(
        "",
        "how a chunk follows the one that is executed while the model thinks; rtc: real-time "
        "chunking; rtc_trained: for models trained with it; empty: each chunk is on its own",
        choices=("", *FORMS),
    )
    rtc_horizon: int = option(
        0,
        "steps of the old chunk that a new one follows at all; 0: all that are left",
        low=0,
        high=10000,
    )
    stretch: float = option(
        1.0, "the command node's stretch, which real-time chunking has to know", low=1, high=100
    )

    serve_port: int = option(
        0,
        "port on which the node serves the model to others as well, as vla serve does, in the "
        "time that the robot's images leave; 0: it does not",
        low=0,
        high=65535,
    )
    serve_host: str = option(
        "127.0.0.1", "address for serve_port; addresses other than loopback need a key"
    )
    serve_map: str = option("free", "observation map of serve_port's clients")
    serve_key_file: str = option("", "file with the key that serve_port's clients must send")
    serve_tls_cert: str = option("", "certificate (PEM) of serve_port")
    serve_tls_key: str = option("", "its private key (PEM)")

    @property
    def serving(self) -> ServeSettings | None:
        """Of the server in the node; None: there is none.

        One observation at a time, so that an image never waits for a batch.
        """
        if not self.serve_port:
            return None
        return ServeSettings(
            host=self.serve_host,
            port=self.serve_port,
            map=self.serve_map,
            key_file=self.serve_key_file,
            tls_cert=self.serve_tls_cert,
            tls_key=self.serve_tls_key,
            max_batch=1,
            max_clients=16,
            max_rate=100.0,
        )

    @property
    def running(self) -> RunningChunk | None:
        """What real-time chunking remembers; None: it is off."""
        if not self.chunking:
            return None
        by = RealTimeChunking(horizon=self.rtc_horizon, form=self.chunking)
        return RunningChunk(by, self.stretch)

    @property
    def layout(self) -> StateLayout:
        return StateLayout(self.state, self.joint_names)

    def settings(self, model: str, unnorm_key: str) -> ModelSettings:
        """Of this model, which need not be the one that the parameters name."""
        return ModelSettings(
            model=model,
            options=LoadOptions.of(self, unnorm_key),
            num_threads=self.num_threads,
            images=len(self.cameras) * (1 + self.history),
            history=self.history,
            interval=self.history_interval,
            state_dim=len(self.layout),
            chunking=self.chunking,
        )
