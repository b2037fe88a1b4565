"""The estimate node: looks at the running task, and publishes how far it is.

Nothing in the graph acts on it. It is for people, and for the recorder.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from std_msgs.msg import String

from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import StateLayout
from vla_inference.options import option
from vla_inference.ros import diagnostics, qos
from vla_inference.ros.inference.inputs import Inputs, View
from vla_inference.ros.lifecycle import ManagedNode, configured, spin_node
from vla_inference.ros.parameters import image_transport, seconds
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.serving.model_thread import ModelThread
from vla_inference.system.workspace import unexpected
from vla_msgs.msg import EpisodeStatus, TaskEstimate

if TYPE_CHECKING:
    from vla_inference.estimate.estimator import Estimate, Watch
    from vla_inference.policies.base import Policy

EARLY = 0.02  # s that an image may come before its time, as cameras do not keep theirs


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """The node's parameters."""

    estimator: str = option("", "folder of an estimator, as vla estimate train makes it")
    device: str = option("", "cpu, cuda, cuda:1 ...; empty: CUDA if available")
    num_threads: int = option(1, "CPU threads of its model; 0: PyTorch's default", low=0, high=256)
    rate: float = option(5.0, "estimates per second at most", low=0.1, high=100.0)
    image_transport: str = image_transport()
    cameras: tuple[str, ...] = option(
        ("image",), "topics of the cameras, in the order its model takes them"
    )
    tolerance: float = seconds(0.05, "maximum difference of stamps of one look [s]")


class EstimateNode(ManagedNode):
    """Its model has a thread of its own, which takes the latest images."""

    TASK = "estimate"

    def __init__(self, name: str = "estimate", **kwargs):
        super().__init__(name, EstimateConfig, **kwargs)
        self._config = EstimateConfig()
        self._model: ModelThread[tuple[View, int]] | None = None
        self._watch: Watch | None = None
        self._inputs: Inputs | None = None
        self._text = ""
        self._status: EpisodeStatus | None = None
        self._episode = 0  # how many others have begun
        self._open, self._next, self._last = False, 0.0, ""
        self._failed = ""  # why the last estimate that failed did
        self._out = self.create_lifecycle_publisher(
            TaskEstimate, "estimate", **qos.overridable(qos.CHUNK)
        )
        self.create_subscription(
            String, "inference/active_instruction", self._on_instruction, qos.LATCHED
        )
        self.create_subscription(EpisodeStatus, "sim/episode", self._on_episode, qos.CHUNK)

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._config = config = self.read(EstimateConfig)
        if not config.estimator:
            raise VlaError("parameter 'estimator' is empty", "set it to an estimator's folder")
        self._model = ModelThread(self._load, self._answer)
        self._model.start()
        self._inputs = Inputs(
            self,
            cameras=config.cameras,
            transport=config.image_transport,
            layout=StateLayout((), ()),
            tolerance=config.tolerance,
            receive=self._receive,
        )

    def do_activate(self) -> None:
        configured(self._inputs).reset()
        configured(self._watch).forget()
        self._open, self._next = True, 0.0

    def do_deactivate(self) -> None:
        self._open = False
        if self._model is not None:
            self._model.latest.reset()

    def do_cleanup(self) -> None:
        self._open = False
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        model, self._model = self._model, None
        if model is not None:
            model.stop(timeout=0.5)

    def diagnose(self) -> diagnostics.Report:
        missing = self._inputs.missing() if self._open and self._inputs is not None else ""
        remark = missing or ("" if self._text else "no instruction yet")
        if not self._open or not remark:
            return diagnostics.OK, self._last or self.state, {}
        return diagnostics.WARN, remark, {}

    def _load(self) -> Policy:
        """In the model's thread."""
        import torch

        from vla_inference.estimate.estimator import Estimator, Watch

        config = self._config
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        found = Estimator.load(Path(config.estimator).expanduser(), config.device or None)
        policy = found.eyes.policy
        if policy.needs.images != len(config.cameras):
            raise VlaError(
                f"the estimator's model sees {policy.needs.images} images, 'cameras' has "
                f"{len(config.cameras)}",
                "name as many, in its order",
            )
        if policy.needs.state:
            raise VlaError(
                "the estimator's model takes the robot's state, which is not read here",
                "train one on a model that has images alone",
            )
        self._watch = Watch(found)
        return policy

    # -- what comes in ------------------------------------------------------------------------

    def _on_instruction(self, msg: String) -> None:
        self._text = msg.data

    def _on_episode(self, msg: EpisodeStatus) -> None:
        last, self._status = self._status, msg
        if last is None:
            return
        if (msg.seed, msg.index) != (last.seed, last.index) or msg.step < last.step:
            self._episode += 1
            self._next = 0.0  # its first image is not too early

    def _receive(self, view: View) -> None:
        stamp = stamp_seconds(view.header.stamp)
        period = 1.0 / self._config.rate
        if self._next - period <= stamp < self._next - EARLY:
            return  # not yet; else it is, or the clock has jumped
        self._next = stamp + period
        if self._open and self._text and self._model is not None:
            self._model.latest.put((view, self._episode))

    # -- in the model's thread ----------------------------------------------------------------

    def _answer(self, _model: ModelThread[tuple[View, int]], value: tuple[View, int]) -> None:
        view, episode = value
        text, inputs, watch = self._text, self._inputs, self._watch
        if inputs is None or watch is None or episode != self._episode:
            return
        try:
            found = watch.look(inputs.observe(view, text), episode)
        except VlaError as error:
            reason = " ".join(str(error).split())
            self.get_logger().warning(f"no estimate: {reason}", throttle_duration_sec=5.0)
            return
        except Exception as error:  # a model's fault is one estimate less; the node lives on
            reason = unexpected(error)
            if reason != self._failed:  # once for each kind
                traceback.print_exc()
                self.get_logger().error(f"no estimate: {reason}")
            self._failed = reason
            return
        if self._open and episode == self._episode:
            self._publish(view, text, found)

    def _publish(self, view: View, text: str, found: Estimate) -> None:
        msg = TaskEstimate(instruction=text, suggested=found.suggested)
        msg.header.stamp = view.header.stamp
        msg.progress, msg.done = found.progress, found.done
        self._out.publish(msg)
        self._last = f"progress {100 * found.progress:.0f} %, {found.suggested} suggested"


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(EstimateNode, args)


if __name__ == "__main__":
    sys.exit(main())
