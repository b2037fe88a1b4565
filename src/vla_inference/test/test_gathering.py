"""Tests of how long a batch waits for clients that are about to ask again."""

from __future__ import annotations

from vla_inference.serving.openpi.gathering import SHARE, Gathering

TOOK = 0.1
LONGEST = SHARE * TOOK


def rounds(clients: str, pause: float, count: int = 2) -> Gathering:
    """After so many batches, each answered to all, who ask again after the pause."""
    gathering, now = Gathering(), 0.0
    for _ in range(count):
        gathering.answered(clients, now, TOOK)
        for client in clients:
            gathering.asked(client, now + pause)
        now += 1.0
    return gathering


def test_it_waits_for_those_that_came_back_soon():
    gathering = rounds("abc", LONGEST / 2)
    assert gathering.wait(5.0) == 0  # nobody is missing
    gathering.answered("abc", 5.0, TOOK)
    gathering.asked("a", 5.001)
    assert 0 < gathering.wait(5.001) <= LONGEST
    gathering.asked("b", 5.002)
    gathering.asked("c", 5.003)
    assert gathering.wait(5.003) == 0


def test_it_waits_no_longer_than_its_share():
    gathering = rounds("ab", LONGEST / 2)
    gathering.answered("ab", 5.0, TOOK)
    assert gathering.wait(5.0 + LONGEST) == 0
    # And not at all for the one that was late, until it was prompt again.
    gathering.answered("a", 6.0, TOOK)
    gathering.asked("b", 6.0)
    gathering.answered("b", 6.1, TOOK)
    gathering.asked("a", 6.1)
    assert gathering.wait(6.1) == 0


def test_it_does_not_wait_for_slow_unknown_or_lost_clients():
    slow = rounds("ab", 2 * LONGEST)
    slow.answered("ab", 5.0, TOOK)
    assert slow.wait(5.0) == 0
    unknown = Gathering()
    unknown.answered("ab", 5.0, TOOK)
    assert unknown.wait(5.0) == 0
    lost = rounds("ab", LONGEST / 2)
    lost.answered("ab", 5.0, TOOK)
    lost.asked("a", 5.001)
    lost.gone("b")
    assert lost.wait(5.001) == 0


def test_clients_that_never_come_back_are_forgotten():
    gathering = rounds("a", LONGEST / 2)
    for i, client in enumerate(["a", *range(1000)]):
        gathering.answered([client], 5.0 + i, TOOK)
    assert len(gathering._answered) < 3 and not gathering._prompt
