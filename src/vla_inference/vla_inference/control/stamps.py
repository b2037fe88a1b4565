"""When a stamp was: by steady time, of a clock that may stand still, go in steps or jump."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

AHEAD = 0.1  # s; clocks of two computers differ by less where they are synchronised
KEEP = 2.0  # s; older stamps are judged by the oldest moment that is kept


class Stamps:
    """`see` the clock whenever it is read; `when` tells of its stamps."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []  # the clock, steady time; in order

    def see(self, now: float, steady: float) -> None:
        seen = self._seen
        if seen and now < seen[-1][0]:
            seen.clear()  # it begins anew
        if len(seen) > 1 and seen[-2][0] == seen[-1][0] == now:
            seen.pop()  # of a clock that stands still the first and the last moment matter
        seen.append((now, steady))
        while len(seen) > 1 and seen[1][1] < steady - KEEP:
            seen.pop(0)

    def when(self, stamp: float) -> tuple[float, float]:
        """The first and the last steady time at which the clock may have shown a stamp.

        They are one where it runs. What is stamped with the time at which it stands is no newer
        than when it came to that, and may be as new as it stands there.
        """
        seen, newest = self._seen, self._seen[-1][1]
        first = bisect_left(seen, (stamp,))  # of the moments at which it was as late, or later
        later = bisect_right(seen, (stamp, float("inf")))
        near = seen[max(0, first - 1) : first + 1] + seen[later : later + 1]
        moments = [steady - (now - stamp) for now, steady in near]
        moments += [newest] if later == len(seen) else []
        return min(min(moments), newest), min(max(moments), newest)
