"""Hostile clients attack a server for seconds; `robustness/hostile_clients.py` does it longer."""

from __future__ import annotations

import pytest
from hostile_clients import ATTACKS, huge_frames, large_frames, run

QUICK = tuple(a for a in ATTACKS if a not in (huge_frames, large_frames))


@pytest.mark.parametrize(
    ("seconds", "connections", "attacks"),
    [(6, 300, QUICK), pytest.param(40, 3000, ATTACKS, marks=pytest.mark.slow)],
)
def test_a_good_client_does_not_notice(seconds, connections, attacks):
    found = run(seconds / 60, connections, seed=1, attacks=attacks)
    # Memory is measured over minutes, once its buffers have found their size.
    assert not [text for text in found["wrong"] if "grew by" not in text]
    done = found["attacks"]
    assert found["good_client"]["answers"] and done["broken frames"] and done["payloads"]
    assert done["connections"] >= connections
