"""Geometric predicates for success rules and termination signals.

Names are those of a task's objects or of the roles that its scene gives out. Lengths in m.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.tasks.base import Rule, RuleState

STILL = 0.1  # m/s


def held(name: str) -> Rule:
    """Both fingers touch it."""
    return lambda sim: sim.holds(name)


def lifted(name: str, height: float) -> Rule:
    """Its centre is above this height over the floor."""
    return lambda sim: sim.position(name)[2] > height


def on_top(upper: str, lower: str, height: float) -> Rule:
    """`upper` is released and rests on `lower`, its centre higher by about `height`.

    Its centre must be over `lower`, within a half of `height`: else it would only lean there.
    """

    def rule(sim: RuleState) -> bool:
        apart = sim.position(upper) - sim.position(lower)
        if abs(apart[2] - height) > 0.01 or np.abs(apart[:2]).max() > height / 2:
            return False
        return sim.speed(upper) <= STILL and sim.touching(upper, lower) and not sim.holds(upper)

    return rule


def around(name: str, post: str, reach: float, below: float) -> Rule:
    """It is within `reach` of the post's axis in x and in y, and lower than `below`."""

    def rule(sim: RuleState) -> bool:
        at = sim.position(name)
        return np.abs(at - sim.position(post))[:2].max() < reach and at[2] < below

    return rule


def all_of(*rules: Rule) -> Rule:
    return lambda sim: all(rule(sim) for rule in rules)
