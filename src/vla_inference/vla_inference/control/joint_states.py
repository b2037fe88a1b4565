"""Measured joint positions by name, aged by their stamps and checked for plausibility.

Joints cannot jump. A sample farther from the one before, and from the way to where the arm was
sent, than the joints' velocities allow is refused; where such samples go on, nothing is believed
any more: two sources, or a wrong one. Samples that come late are not used, but must agree with
what was measured then: of two sources one may always be the later one.
No clock of its own: `steady` is seconds, passed in.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from vla_inference.control.stamps import AHEAD

FASTEST = 2 * math.pi  # rad/s, m/s: of joints whose description tells no velocity
JUMPS, WINDOW = 3, 1.0  # this many within this many seconds: no longer trusted
KEEP = 2.0  # s of samples that were believed
SETTLED = 3  # samples in a row that agree, before any is believed


class JointStates:
    """Takes measurements by `hear`; `positions` [n] are valid while `trouble` is empty.

    velocity: what each joint can do [rad/s, m/s]; infinite: not known. margin: [n] by which a
    sample may be beyond it [rad, m]. timeout: [s] after which a joint's position is too old;
    infinite: never, and any stamp is right. Joints may be told in different messages, with others
    among them.
    """

    def __init__(
        self, names: Sequence[str], velocity: np.ndarray, margin: np.ndarray, timeout: float
    ):
        self.names, self.timeout, self._margin = tuple(names), timeout, margin
        self._ahead = min(AHEAD, timeout) if math.isfinite(timeout) else math.inf  # by a stamp [s]
        self.positions: np.ndarray | None = None  # of all joints, once all were heard of
        self.commanded: np.ndarray | None = None  # where the arm may have gone meanwhile
        self.refusals: Counter[str] = Counter()
        self.refusal = ""  # of the last message; empty: none
        self._velocity = np.where(np.isfinite(velocity), velocity, FASTEST)
        count = len(self.names)
        self._values = np.full(count, np.nan)
        self._at = np.full(count, -math.inf)  # steady time of each joint's value
        self._after = np.full(count, math.nan)  # and of the first sample since, where refused
        self._heard = -math.inf  # when there was any sample, good or not
        self._past: deque[tuple[float, np.ndarray]] = deque()  # steady times, values; in order
        self._jumps: deque[float] = deque(maxlen=JUMPS)
        self._jump = ""
        self._agreed = 0

    @property
    def at(self) -> float:
        """Steady time since which all joints are as measured or have moved on; -inf: never."""
        return float(self._at.min())

    def hear(
        self, names: Sequence[str], positions: Sequence[float], steady: float, age: float = 0.0
    ) -> bool:
        """Takes a message measured `age` seconds ago; returns whether all joints are known."""
        self.refusal = ""
        told = dict(zip(names, positions, strict=False))
        joints = [i for i, n in enumerate(self.names) if n in told]
        values = np.array([told[self.names[i]] for i in joints], float)
        at = steady - max(age, 0.0)
        if not joints:  # of another robot or gripper
            self._lacking()
            return False
        if not np.isfinite(values).all():
            return self._refuse("joints", "joint states hold numbers that are not finite")
        if not -self._ahead <= age <= self.timeout:
            when = f"{age:.2f} s old" if age > 0 else f"{-age:.2f} s in the future"
            return self._refuse("joints_age", f"joint states are {when}; synchronise the clocks")
        if at < self._at[joints].min() - 1e-3:
            elsewhere = self._contradicts(joints, values, at)
            if elsewhere:
                return self._refuse_jump(elsewhere, steady)
            return self._refuse("joints_age", "joint states go back in time")
        if steady - self._heard > self.timeout:  # what happened meanwhile is unknown
            self._agreed, self._after[:] = 0, math.nan
        self._heard = steady
        jump = self._implausible(joints, values, at)
        if jump:
            return self._refuse_jump(jump, steady)
        self._values[joints], self._at[joints], self._after[joints] = values, at, math.nan
        if self._lacking():
            return False
        self._keep(at)
        self._agreed += 1
        self.positions = self._values.copy()
        return True

    def _keep(self, at: float) -> None:
        past = self._past
        while past and past[-1][0] >= at:
            past.pop()
        while past and past[0][0] < at - KEEP:
            past.popleft()
        past.append((at, self._values.copy()))

    def _lacking(self) -> bool:
        """Whether some joints have never been reported."""
        lacking = [n for n, v in zip(self.names, self._values, strict=True) if math.isnan(v)]
        if lacking:
            self._refuse("joints", f"joint states lack {', '.join(lacking)}")
        return bool(lacking)

    def _implausible(self, joints: list[int], values: np.ndarray, at: float) -> str:
        """Names a joint that cannot have moved this far. Wrong samples do not become plausible
        by lasting: time counts from before the first of them."""
        since = self._after[joints]
        since = np.where(np.isnan(since), at, since)
        self._after[joints] = since
        passed = np.maximum(since - self._at[joints], 0.0)
        known = self._values[joints]
        sent = known if self.commanded is None else self.commanded[joints]
        ways = np.abs(values - np.clip(values, np.minimum(known, sent), np.maximum(known, sent)))
        excess = ways - (self._velocity[joints] * passed + self._margin[joints])
        excess = np.where(np.isfinite(passed), excess, -math.inf)  # the first sample of all
        worst = int(np.argmax(excess))
        if excess[worst] <= 0:
            return ""
        name = self.names[joints[worst]]
        return f"joint states jump: {name} by {ways[worst]:.2f} in {passed[worst]:.3f} s"

    def _contradicts(self, joints: list[int], values: np.ndarray, at: float) -> str:
        """Names a joint that cannot have been there at a time that lies back."""
        after = bisect_right(self._past, at, key=lambda entry: entry[0])
        if not 0 < after < len(self._past):
            return ""
        (begin, first), (end, second) = self._past[after - 1], self._past[after]
        low, high = np.minimum(first, second)[joints], np.maximum(first, second)[joints]
        ways = np.abs(values - np.clip(values, low, high))
        passed = min(at - begin, end - at)
        excess = ways - (self._velocity[joints] * passed + self._margin[joints])
        worst = int(np.argmax(excess))
        if not excess[worst] > 0:
            return ""
        name = self.names[joints[worst]]
        return f"joint states contradict earlier ones: {name} by {ways[worst]:.2f}"

    def _refuse_jump(self, jump: str, steady: float) -> bool:
        self._jump = jump
        self._jumps.append(steady)
        self._agreed = 0 if self._agreed < SETTLED else self._agreed
        return self._refuse("joints_jump", jump)

    def _refuse(self, kind: str, reason: str) -> bool:
        self.refusals[kind] += 1
        self.refusal = reason
        return False

    def trouble(self, steady: float) -> str:
        """Why the joint positions cannot be used now; empty: they can."""
        if len(self._jumps) == JUMPS and steady - self._jumps[0] <= WINDOW:
            return (
                f"{self._jump}; leave one publisher of joint_states. Where the arm was really set "
                "elsewhere, deactivate and activate this node"
            )
        if self.positions is None or steady - self._at.min() > self.timeout:
            return "no joint states that tell of all joints"
        return "" if self._agreed >= SETTLED else "joint states have only begun"
