"""The safety state machine: whether the robot may move, its watchdogs and its counters.

Disabled at first (a dry run). `enable` starts it; any fault stops it; after a stop only `enable`
starts it again. Time is passed in by two clocks: `now`, the one that images are stamped with,
which may jump or stand still, and `steady`, which does neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vla_inference.control.commands import check_chunk
from vla_inference.control.takeover import HUMAN, MODEL, Takeover
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import check_si, si_spec
from vla_inference.policies.normalisation import Normalisation
from vla_inference.types import ActionChunk, ActionSpec

DISABLED, ENABLED, STOPPED = "disabled", "enabled", "stopped"

# Kinds of stops
BAD_CHUNK = "bad_chunk"
IMAGE_AGE = "image_age"
STALL = "inference_stall"
CLOCK_BACK, CLOCK_FORWARD = "clock_back", "clock_forward"
LATE = "late"
PUBLISHER = "second_publisher"
HEARTBEAT = "heartbeat"
POSE = "pose_lost"
FAULT = "node_fault"
POSE_FROZEN = "pose_frozen"
NOT_FOLLOWING = "not_following"
CLOCK_STOPPED = "clock_stopped"
JOINTS_LOST = "joints_lost"
JOINTS_FROZEN = "joints_frozen"
CONTROLLER = "controller"
OBSTACLE, SCAN_LOST = "obstacle", "scan_lost"

# Refusals, no stops
OUT_OF_DISTRIBUTION = "out_of_distribution"
INPUT_AGE = "input_age"  # of a person's chunk


@dataclass(frozen=True)
class Watchdogs:
    """Time limits in seconds; 0 switches one off.

    image_age: of the image behind the motion. stall: without an acceptable chunk.
    clock_jump: by which `now` may differ from `steady` between two command periods.
    clock_stopped: in which `now` stands still, or nearly so, while `steady` goes on.
    late: between two command periods. heartbeat: without one. pose_age: without a measured pose,
        where one is needed. pose_frozen: of commanded motion while the measured pose stays the
        very same.
    """

    image_age: float = 1.0
    stall: float = 1.0
    clock_jump: float = 0.2
    late: float = 0.5
    heartbeat: float = 0.0
    pose_age: float = 0.5
    pose_frozen: float = 0.5
    clock_stopped: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):  # NaN would switch it off unnoticed
                raise VlaError(f"watchdog {name} is {value}", "give seconds >= 0; 0: off")


@dataclass(frozen=True)
class Stop:
    kind: str
    reason: str
    now: float


@dataclass(frozen=True)
class Distribution:
    """Values that the model can give: between the bounds of its normalisation (q01 and q99 of
    training, or the least and the greatest), and `margin` times their distance beyond.

    spec: what these numbers mean, in SI; None: as the chunk's.
    """

    low: np.ndarray
    high: np.ndarray
    spec: ActionSpec | None = None

    @classmethod
    def from_statistics(
        cls, statistics: Mapping, margin: float, bounds: str = "q01_q99"
    ) -> Distribution:
        """bounds: of the model's head, "q01_q99" or "min_max"."""
        n = Normalisation.from_statistics(statistics, bounds=bounds)
        # Chunks are float32: a value that never changes lies beside its float64 bound.
        rounding = 1e-6 * np.maximum(1.0, np.maximum(abs(n.low), abs(n.high)))
        more = margin * (n.high - n.low) + rounding
        # What isn't normalised, such as the gripper, has no bounds here.
        low = np.where(n.mask, n.low - more, -np.inf)
        return cls(low, np.where(n.mask, n.high + more, np.inf))

    def in_si(self, spec: ActionSpec) -> Distribution:
        """The same for chunks in SI. spec: of the statistics; VlaError if no SI can be made."""
        factors = check_si(spec)
        return Distribution(self.low * factors, self.high * factors, si_spec(spec))

    def outside(self, chunk: ActionChunk) -> str:
        """Describes the value that lies outside; empty: none."""
        if len(self.low) != len(chunk.spec):
            return f"the statistics have {len(self.low)} dimensions, the chunk {len(chunk.spec)}"
        if self.spec is not None and _kinds(self.spec) != _kinds(chunk.spec):
            wanted, found = (", ".join(map(str, s.parts)) for s in (self.spec, chunk.spec))
            return f"the statistics are of {wanted}, the chunk of {found}"
        bad = (chunk.actions < self.low) | (chunk.actions > self.high)
        if not bad.any():
            return ""
        step, axis = np.argwhere(bad)[0]
        return (
            f"{chunk.spec.names[axis]} of step {step} is {chunk.actions[step, axis]:.4g}, outside "
            f"{self.low[axis]:.4g} to {self.high[axis]:.4g} (training's range and a margin)"
        )


def _kinds(spec: ActionSpec) -> list[str]:
    """Of each number."""
    return [p.kind for p in spec.parts for _ in p.dims]


class Safety:
    """The state machine: `tick` decides at each period whether to move; the rest reports to it."""

    def __init__(
        self,
        watchdogs: Watchdogs | None = None,
        distribution: Distribution | None = None,
        check: Callable[[ActionChunk], None] = check_chunk,
        takeover: Takeover | None = None,
    ):
        """check: raises VlaError if a chunk cannot be executed. takeover: who commands."""
        self.watchdogs = watchdogs or Watchdogs()
        self.distribution = distribution
        self._check = check
        self.takeover = takeover or Takeover()
        self.state = DISABLED
        self.last_stop: Stop | None = None
        self.warning = ""  # what would stop it, were it enabled
        self.last_refusal = ""
        self.stops: Counter[str] = Counter()
        self.clips: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._tick: tuple[float, float] | None = None  # now, steady
        self._stood = 0.0  # s for which `now` has stood still
        self._chunk = self._heartbeat = -math.inf  # steady times
        self._poses: dict[str, float] = {}  # steady times, by arm
        self._needed: list[str] = []  # arms whose pose must be known

    @property
    def enabled(self) -> bool:
        return self.state == ENABLED

    # -- by hand ------------------------------------------------------------------------------

    def enable(self, steady: float, others: str = "") -> str:
        """Allows motion; returns the reason if refused, or an empty string."""
        if self.enabled:
            return ""
        for fault in (
            self._second_publisher(others),
            self._silence(HEARTBEAT, steady),
            self._silence(POSE, steady),
            self._clock_stopped(),
            None if self.takeover.by_hand else self._no_chunk(steady),
        ):
            if fault:
                return fault[1]
        # The model has as long for its next chunk as for any other.
        self._chunk = steady
        self.state, self.warning = ENABLED, ""
        return ""

    def disable(self) -> None:
        self.state = DISABLED

    def stop(self, kind: str, reason: str, now: float) -> None:
        """A fault: stops the robot if enabled, only warns if disabled."""
        if self.enabled:
            self.state = STOPPED
            self.stops[kind] += 1
            self.last_stop = Stop(kind, reason, now)
        self.warning = reason

    # -- what comes in ------------------------------------------------------------------------

    def heartbeat(self, steady: float) -> None:
        self._heartbeat = steady

    def needs_pose(self, arm: str) -> None:
        """From now on the pose of this arm must be known, whatever moves."""
        self._needed.append(arm)

    def pose(self, steady: float, arm: str = "") -> None:
        """Records that the pose of an arm was known at that time."""
        self._poses[arm] = steady

    def fed(self, steady: float) -> None:
        """Records that a chunk of the model with executable steps arrived."""
        self._chunk = steady

    def given_back(self, steady: float) -> None:
        """The model commands again: it has as long for a chunk as for any other."""
        if self.enabled:
            self._chunk = steady

    def knows_pose(self, steady: float, arm: str = "") -> bool:
        """Whether the measured pose is recent enough to send to a controller."""
        return steady - self._poses.get(arm, -math.inf) <= (self.watchdogs.pose_age or math.inf)

    def clip(self, kinds: set[str]) -> None:
        self.clips.update(kinds)

    def refuse(self, kind: str, reason: str) -> None:
        self.refusals[kind] += 1
        self.last_refusal = reason

    def bad_chunk(self, reason: str, now: float, source: str = MODEL) -> None:
        """Reports an invalid answer: the next ones of that source are not trusted either."""
        self._refuse_and_stop(BAD_CHUNK, reason, now, source)

    def _refuse_and_stop(self, kind: str, reason: str, now: float, source: str) -> None:
        """A source that is not in charge moves nothing: there is nothing to be stopped."""
        reason = f"human_action: {reason}" if source == HUMAN else reason
        self.refuse(kind, reason)
        if source == self.takeover.source:
            self.stop(kind, reason, now)

    def accepts(self, chunk: ActionChunk, stamp: float, now: float, source: str = MODEL) -> bool:
        """Whether a chunk may be executed. stamp: of its image, or of when a person's input was
        read."""
        try:
            self._check(chunk)
        except VlaError as error:
            self.bad_chunk(str(error), now, source)
            return False
        return self._hears(stamp, now) if source == HUMAN else self._trusts(chunk, stamp, now)

    def _hears(self, stamp: float, now: float) -> bool:
        """Whether a person's input is recent. An old one is as good as none: silence halts."""
        age, bound = now - stamp, self.takeover.timeout
        if abs(age) <= bound:
            return True
        self.refuse(
            INPUT_AGE,
            f"human_action: by its stamp the input is {abs(age):.2f} s "
            f"{'old' if age > 0 else 'in the future'} (allowed: {bound:g} s); check the network, "
            "synchronise the clocks",
        )
        return False

    def _trusts(self, chunk: ActionChunk, stamp: float, now: float) -> bool:
        """Whether a chunk of the model is from a recent image, and like those of its training."""
        fault = self._image_age(stamp, now)
        if fault:
            self._refuse_and_stop(*fault, now, MODEL)
            return False
        outside = self.distribution.outside(chunk) if self.distribution else ""
        if outside:
            # A single outlier is left out; a model that gives nothing else stalls.
            self.refuse(OUT_OF_DISTRIBUTION, outside)
            return False
        return True

    # -- the watchdogs ------------------------------------------------------------------------

    def tick(
        self,
        now: float,
        steady: float,
        others: str = "",
        moved_by: float | None = None,
        robot: tuple[str, str] | None = None,
    ) -> bool:
        """Starts a command period; returns whether to move.

        others: who else is on our topics, in words; empty: nobody. moved_by: stamp of the image
        behind the motion under way, if any. robot: what is wrong with it, kind and reason.
        """
        fault = (
            self._clock(now, steady)
            or self._second_publisher(others)
            or self._silence(HEARTBEAT, steady)
            or self._silence(POSE, steady)
            or robot
            or (None if self.takeover.by_hand else self._model(now, steady, moved_by))
        )
        self._tick = now, steady
        self.warning = ""
        if fault:
            self.stop(*fault, now)
        return self.enabled

    def _model(self, now: float, steady: float, moved_by: float | None) -> tuple[str, str] | None:
        old = self._image_age(moved_by, now) if moved_by is not None else None
        return old or self._silence(STALL, steady)

    def _clock(self, now: float, steady: float) -> tuple[str, str] | None:
        if self._tick is None:
            return None
        passed, truly = now - self._tick[0], steady - self._tick[1]
        self._stood = self._stood + truly if abs(passed) < 0.1 * truly else 0.0
        jump, late = self.watchdogs.clock_jump, self.watchdogs.late
        if jump and passed < -jump:
            return CLOCK_BACK, f"the clock jumped back by {-passed:.3f} s; enable again"
        if jump and passed - truly > jump:
            return CLOCK_FORWARD, (
                f"the clock jumped forward by {passed - truly:.3f} s; enable again, or raise "
                "max_clock_jump where simulated time runs fast"
            )
        if late and truly > late:
            return LATE, f"{truly:.3f} s between two command periods; the computer is overloaded"
        return self._clock_stopped()

    def _clock_stopped(self) -> tuple[str, str] | None:
        bound = self.watchdogs.clock_stopped
        if not bound or self._stood <= bound:
            return None
        return CLOCK_STOPPED, (
            f"the clock has stood still for {self._stood:.2f} s; with use_sim_time: is the "
            "simulation paused or the bag over?"
        )

    def _no_chunk(self, steady: float) -> tuple[str, str] | None:
        if math.isfinite(self._chunk):
            return self._silence(STALL, steady)
        refused = f"; the last was refused: {self.last_refusal}" if self.last_refusal else ""
        return STALL, f"no usable chunk has come from the model yet{refused}"

    def _second_publisher(self, others: str) -> tuple[str, str] | None:
        return (PUBLISHER, f"{others}; leave only one") if others else None

    def _silence(self, kind: str, steady: float) -> tuple[str, str] | None:
        bound, last, what = {
            HEARTBEAT: (self.watchdogs.heartbeat, self._heartbeat, "no heartbeat"),
            POSE: (self.watchdogs.pose_age, *self._oldest_pose()),
            STALL: (self.watchdogs.stall, self._chunk, "no usable chunk from the model"),
        }[kind]
        silent = steady - last
        if not bound or silent <= bound:
            return None
        since = f"for {silent:.2f} s" if math.isfinite(silent) else "yet"
        return kind, f"{what} {since} (allowed: {bound:g} s)"

    def _oldest_pose(self) -> tuple[float, str]:
        """Steady time of the oldest pose that must be known, and what is wrong if it is old."""
        times = [(self._poses.get(arm, -math.inf), arm) for arm in self._needed]
        oldest, arm = min(times, default=(math.inf, ""))
        return oldest, "no usable measured pose" + (f" of {arm}" if arm else "")

    def _image_age(self, stamp: float, now: float) -> tuple[str, str] | None:
        age, bound = now - stamp, self.watchdogs.image_age
        if bound and age > bound:
            return IMAGE_AGE, (
                f"the image behind the motion is {age:.2f} s old, more than {bound:g} s; check "
                "camera, clocks and the model's rate"
            )
        if bound and age < -bound:
            return IMAGE_AGE, (
                f"the image's stamp is {-age:.2f} s in the future; synchronise the clocks"
            )
        return None
