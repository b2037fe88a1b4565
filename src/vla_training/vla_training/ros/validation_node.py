"""The validation node: replays a bag into the graph and compares the model's answers.

It plays the bag itself, with `/clock`, or listens while `ros2 bag play --clock` does. An answer
belongs to the image whose stamp it carries. At the end: report and exit status.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_inference.errors import DataError, VlaError
from vla_inference.options import option
from vla_inference.policies.action_specs import statistics_spec
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.lifecycle import ManagedNode, spin_node
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.stamps import stamp_ns
from vla_inference.types import ActionChunk, Step
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import InferenceStatus
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.streams import NS
from vla_training.evaluation import validation_report
from vla_training.evaluation.accuracy import Range
from vla_training.evaluation.config import Thresholds
from vla_training.evaluation.validate import check_form
from vla_training.evaluation.validation import Validation

TICK = 0.01  # s
LEAD = NS // 2  # ns that the clock runs before an episode's first image
SECONDS = {"low": 0, "high": 3600}
ASKED = (
    "min_accuracy",
    "min_direction",
    "min_coverage",
    "max_gripper_flips",
    "max_latency_ms",
    "max_jump_mm",
)


def _threshold(of: str, unasked: float = -1.0) -> float:
    return option(unasked, f"{of}; {unasked:g}: no check", low=-2, high=1e9)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The node's parameters. If one of the thresholds (from `min_accuracy` on) is missed, the
    exit status is 1."""

    bag: str = option("", "bag, or folder of bags")
    model: str = option("", "checkpoint whose statistics scale the accuracy; empty: the bag's")
    action_space: str = option("", "which of its statistics; empty: the only ones")
    image_topic: str = option("", "images in the bag; empty: chosen by type")
    action_topic: str = option("", "actions in the bag; empty: chosen by type")
    instruction_topic: str = option("", "instructions in the bag; empty: chosen by name")
    gripper_topic: str = option("", "gripper in the bag, beside twists and poses")
    tolerance: float = option(
        0.05, "maximum difference of stamps that belong together [s]", **SECONDS
    )
    play: bool = option(True, "publish the bag and /clock; false: ros2 bag play --clock does")
    rate: float = option(1.0, "replay rate relative to the clock", low=0.01, high=100)
    wait: bool = option(False, "wait for each answer before the next image")
    answer_timeout: float = option(
        5.0, "time to wait for answers at the end, or for each with `wait` [s]", **SECONDS
    )
    start_timeout: float = option(120.0, "time to wait for the model [s]", **SECONDS)
    output: str = option("", "folder for the report; empty: none")
    min_accuracy: float = _threshold("fail below this accuracy (clipped), 0 to 1")
    min_direction: float = _threshold("fail below this mean cosine of translations", unasked=-2.0)
    min_coverage: float = _threshold("fail below this share of answered images")
    max_gripper_flips: float = _threshold("fail above this share of frames with a gripper flip")
    max_latency_ms: float = _threshold("fail above this 95th percentile of the latency")
    max_jump_mm: float = _threshold("fail above this 95th percentile of jumps between chunks")

    def thresholds(self) -> Thresholds:
        """Those that are set."""
        values = {name: getattr(self, name) for name in ASKED}
        asked = {n: v for n, v in values.items() if v > (-2 if "direction" in n else -1e-9)}
        return Thresholds(**asked)


@dataclass(frozen=True)
class Cue:
    """A recorded image. stamp, log: ns, when it was taken and when the clock shows it."""

    episode: int
    step: int
    stamp: int
    log: int
    instruction: str


@dataclass(frozen=True)
class ModelAnswer:
    chunk: ActionChunk
    latency: float
    age: float


class ValidationNode(ManagedNode):
    TASK = "validation"

    def __init__(self, name: str = "validation", **kwargs):
        super().__init__(name, ValidationConfig, **kwargs)
        self._config = ValidationConfig()
        self.exit_status: int | None = None
        self.statistics: dict[str, Any] | None = None
        self._cues: list[Cue] = []
        self._answers: dict[int, ModelAnswer] = {}
        self._sent: dict[int, float] = {}  # stamp -> when it was published (monotonic)
        self._entities: list[Any] = []  # publishers and subscriptions
        self._timer = None
        self._ready = False
        self._told = ""
        self._refused: dict[str, int] = {}

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._config = config = self.read(ValidationConfig)
        if not config.bag:
            raise VlaError("parameter 'bag' is empty", "set it to a bag, or a folder of bags")
        path = Path(config.bag).expanduser()
        if not path.exists():
            raise DataError(f"there is no bag at {path}", "check the path")
        self._bags = BagSet(
            path,
            image_topic=config.image_topic or None,
            action_topic=config.action_topic or None,
            instruction_topic=config.instruction_topic or None,
            gripper_topic=config.gripper_topic or None,
            tolerance=config.tolerance,
        )
        check_form(self._bags.spec, str(path))
        self._bounds = self._read_bounds()
        self._bags.read_all()
        self._cues = _cues(self._bags)
        self._by_stamp = {c.stamp: c for c in self._cues}
        if len(self._by_stamp) < len(self._cues):
            raise DataError(
                f"{path}: images of different episodes have the same stamp",
                "validate one bag at a time",
            )
        if self._config.play:
            self._image = self.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
            self._text = self.create_publisher(String, "instruction", qos.LATCHED)
            self._clock_out = self.create_publisher(ClockMsg, "/clock", qos.CHUNK)
            self._entities += [self._image, self._text, self._clock_out]
        hear = self.create_subscription
        self._entities += [
            hear(ActionChunkMsg, "action", self._hear, qos.CHUNK),
            hear(InferenceStatus, "inference/status", self._hear_status, qos.LATCHED),
        ]

    def do_activate(self) -> None:
        self._begun = self._heard = time.monotonic()
        self._next, self._episode = 0, -1
        self._steps: Sequence[Step] = ()
        self._now = self._cues[0].log - 2 * LEAD
        self._ticked = time.monotonic()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(TICK, self._guarded_tick, clock=steady)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def do_cleanup(self) -> None:
        for entity in self._entities:
            destroy = self.destroy_publisher if hasattr(entity, "publish") else None
            (destroy or self.destroy_subscription)(entity)
        self._entities.clear()
        self._answers.clear()
        self._sent.clear()

    def _read_bounds(self) -> Range:
        """Reads the bounds and converts the bag's actions to the model's."""
        if not self._config.model:
            entry = self._bags.statistics()
        else:
            path = Path(self._config.model).expanduser() / "dataset_statistics.json"
            try:
                spaces = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise VlaError(f"{path} cannot be read ({error})", "set model") from error
            name, _ = find_statistics(spaces, self._config.action_space or None)
            entry = spaces[name]
            if "spec" in entry:
                size = len(entry.get("action", entry)["q01"])
                self._bags.read_as(statistics_spec(entry, size, name))
        found = Normalisation.from_statistics(entry.get("action", entry), "the statistics")
        return Range(found.low, found.high)

    # -- playing ------------------------------------------------------------------------------

    def _guarded_tick(self) -> None:
        if self.exit_status is not None:
            return
        try:
            self._tick()
        except VlaError as error:
            self.get_logger().error(" ".join(str(error).split()))
            self.exit_status = 2

    def _tick(self) -> None:
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        if not self._ready:
            if now - self._begun > self._config.start_timeout:
                raise VlaError("no model is active", "start an inference node on these topics")
            if self._config.play:
                self._publish_clock()
            self._heard = now
            return
        if not self._config.play:
            silent = now - self._heard
            if len(self._answers) == len(self._cues) or (
                silent > (5 if self._answers else 12) * self._config.answer_timeout
            ):
                self._finish()
            return
        self._advance(round(passed * NS * self._config.rate), now)

    def _advance(self, by: int, now: float) -> None:
        if self._next == len(self._cues):
            waited = now - max(self._sent.values(), default=now)
            if self._cues[-1].stamp in self._answers or waited > self._config.answer_timeout:
                self._finish()
            self._now += by
            self._publish_clock()
            return
        cue = self._cues[self._next]
        if cue.episode != self._episode:
            if not self._settled(now):  # the age of that answer is by this clock
                self._now += by
                self._publish_clock()
                return
            self._episode, self._steps = cue.episode, self._bags[cue.episode].steps
            self._now = cue.log - LEAD  # time between episodes is not waited for
        self._now = min(self._now + by, cue.log)
        self._publish_clock()
        if self._now < cue.log or (self._config.wait and not self._settled(now)):
            return
        if cue.instruction != self._told:
            self._told = cue.instruction
            self._text.publish(String(data=cue.instruction))
            if self._next == 0:
                return  # the model hears it before it sees the first image
        image = next(iter(self._steps[cue.step].observation.images.values()))
        stamp = Time(nanoseconds=cue.stamp).to_msg()
        self._sent[cue.stamp] = time.monotonic()
        self._image.publish(rgb_to_image(image, stamp, "camera"))
        self._next += 1

    def _settled(self, now: float) -> bool:
        """Whether the last image sent was answered, or can no longer be."""
        if not self._next:
            return True
        last = self._cues[self._next - 1].stamp
        return last in self._answers or now - self._sent[last] > self._config.answer_timeout

    def _publish_clock(self) -> None:
        self._clock_out.publish(ClockMsg(clock=Time(nanoseconds=self._now).to_msg()))

    # -- answers ------------------------------------------------------------------------------

    def _hear_status(self, msg: InferenceStatus) -> None:
        if msg.state == InferenceStatus.ACTIVE:
            self._ready = True
        if msg.last_refusal and not self._answers:
            self._refused[msg.last_refusal] = int(msg.refused)

    def _hear(self, msg: ActionChunkMsg) -> None:
        now, stamp = time.monotonic(), stamp_ns(msg.header.stamp, "the chunk")
        produced = stamp_ns(msg.produced, "the chunk's production")
        cue = self._by_stamp.get(stamp)
        if cue is None or self.exit_status is not None:
            return
        self._heard = now
        # Of an image that somebody else published only the model knows.
        latency = now - self._sent[stamp] if stamp in self._sent else msg.latency_ms / 1e3
        latency = max(latency, 1e-6)
        age = (produced - stamp) / NS if produced else math.nan
        try:
            self._answers[stamp] = ModelAnswer(msg_to_chunk(msg), latency, age)
        except VlaError as error:
            self._refused[str(error)] = self._refused.get(str(error), 0) + 1

    # -- the end ------------------------------------------------------------------------------

    def _finish(self) -> None:
        spec = self._bags.spec
        notes = [f"refused by the model's node: {r}" for r in self._refused]
        result = Validation(
            "the running model",
            self._bags,
            self._config.action_space or "live",
            spec,
            self._bounds,
            notes,
        )
        for cue in self._cues:
            answer = self._answers.get(cue.stamp)
            if answer is None:
                result.unanswered += 1
                continue
            found = answer.chunk.spec
            if found.rotation != spec.rotation:
                raise DataError(
                    f"the model's rotations are {found.rotation}, those compared {spec.rotation}",
                    "set model to the checkpoint that runs",
                )
            truth = self._bags.actions(cue.episode)[cue.step]
            result.add(
                truth,
                answer.chunk.actions,
                episode=cue.episode,
                step=cue.step,
                instruction=cue.instruction,
                latency=answer.latency,
                total=len(self._cues),
                age=answer.age,
            )
        self.statistics = statistics = result.statistics()
        failures = self._config.thresholds().failures(statistics)
        print(validation_report.text(statistics), flush=True)
        for note in statistics["notes"]:
            self.get_logger().warning(note)
        if self._config.output:
            folder = Path(self._config.output).expanduser()
            statistics["failures"] = failures
            path = validation_report.write_report(folder, result, statistics)
            print(f"report {path}", flush=True)
        for failure in failures:
            self.get_logger().error(failure)
        self.exit_status = 1 if failures else 0


def _cues(bags: BagSet) -> list[Cue]:
    found = []
    for number in range(len(bags)):
        episode = bags.episode(number)
        keys = next(iter(episode.images.values()))
        for step, (stamp, log) in enumerate(keys.tolist()):
            text = episode.instructions[step]
            if not text.strip():
                raise DataError(
                    f"{bags.bag_path(number)}: step {step} has no instruction",
                    "name its topic with instruction_topic",
                )
            found.append(Cue(number, step, stamp, log, text))
    return found


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(ValidationNode, args)


if __name__ == "__main__":
    sys.exit(main())
