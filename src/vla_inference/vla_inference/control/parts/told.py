"""How far joints were told to go since some time, and how sure it is that they went there."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

KEEP = 2.0  # s of commands


@dataclass(frozen=True)
class Way:
    """Commanded motion of one joint [rad, m]; ways are added one after the other.

    whole: if each velocity was obeyed until the next one. less, more: by which the way may be
        lower and higher, as some may have been obeyed for their command period only.
    """

    whole: float = 0.0
    less: float = 0.0
    more: float = 0.0

    @classmethod
    def of(cls, whole: float, unsure: float) -> Way:
        """unsure: signed part of the whole that may not have been gone."""
        return cls(whole, max(unsure, 0.0), max(-unsure, 0.0))

    def __add__(self, other: Way) -> Way:
        return Way(self.whole + other.whole, self.less + other.less, self.more + other.more)

    def __sub__(self, other: Way) -> Way:
        return Way(self.whole - other.whole, self.less - other.less, self.more - other.more)


NOWHERE = Way()


@dataclass
class Sent:
    """Velocities [rad/s, m/s] obeyed from one steady time to another at the latest.

    before: ways told by then.
    """

    begin: float
    end: float
    velocities: tuple[float, ...]
    before: tuple[Way, ...]


@dataclass
class Told:
    """Ways commanded since enabling [n], by steady time; each takes a period [s]."""

    total: list[Way]
    period: float
    past: deque[Sent] = field(default_factory=deque)

    def add(self, steady: float, velocities: tuple[float, ...]) -> None:
        """A command of this time, which is carried out from then on."""
        self.past.append(Sent(steady, steady + self.period, velocities, tuple(self.total)))
        for i, speed in enumerate(velocities):
            self.total[i] += Way(speed * self.period)
        while self.past[0].begin < steady - KEEP:
            self.past.popleft()

    def last_ends(self, late: float) -> None:
        """The next command came so much later than a period [s], or earlier where below 0.

        Until then the joints may have obeyed the last one, or halted after its period.
        """
        self.past[-1].end += late
        for i, speed in enumerate(self.past[-1].velocities):
            way = late * speed
            self.total[i] += Way.of(way, way if late > 0 else 0.0)

    def since(self, first: float, last: float, joint: int) -> Way:
        """Told from a time on that lies between two; `whole` is from the first on, or from the
        first that is kept."""
        times = [first, *(sent.begin for sent in self.past if first < sent.begin < last), last]
        ways = [self._since(time, joint) for time in times]
        whole = ways[0].whole
        low = min(way.whole - way.less for way in ways)
        return Way(whole, whole - low, max(way.whole + way.more for way in ways) - whole)

    def _since(self, steady: float, joint: int) -> Way:
        index = bisect_right(self.past, steady, key=lambda sent: sent.begin)
        if not index:
            return self.total[joint] - (self.past[0].before if self.past else self.total)[joint]
        sent = self.past[index - 1]
        after = self.past[index].before if index < len(self.past) else self.total
        left = max(0.0, sent.end - steady)
        late = max(0.0, sent.end - max(steady, sent.begin + self.period))
        speed = sent.velocities[joint]
        return self.total[joint] - after[joint] + Way.of(left * speed, late * speed)
