"""QoS profiles by purpose: names say what a topic is for, not how it is tuned."""

from __future__ import annotations

import copy
from typing import Any

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def _keep_last(
    depth: int,
    reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
    )


# An image is worth answering only while it is the newest; best effort hears every camera,
# whichever way it publishes.
IMAGE_INPUT = _keep_last(1, reliability=ReliabilityPolicy.BEST_EFFORT)

# Past images count too, of models that take several time steps.
IMAGE_HISTORY = _keep_last(30, reliability=ReliabilityPolicy.BEST_EFFORT)

# States are matched with images by their stamps, so that some of the past are needed too.
STATE_INPUT = _keep_last(30, reliability=ReliabilityPolicy.BEST_EFFORT)

# Reliable publishers serve best-effort and reliable subscribers (REP-2003).
IMAGE_OUTPUT = _keep_last(1)

# Actions must neither be lost nor come back from the past.
CHUNK = _keep_last(10)

# Of commands only the newest counts; controllers subscribe either way (CRISP: depth 1).
COMMAND = _keep_last(1)

# Late subscribers get the last value: states, instructions in force.
LATCHED = _keep_last(1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

# Late subscribers get what was told before as well: who commanded when.
HISTORY = _keep_last(100, durability=DurabilityPolicy.TRANSIENT_LOCAL)

# Instructions are heard through two subscriptions, because a transient-local one does not match
# volatile publishers (`ros2 topic pub`) and a volatile one misses what was latched before.
INSTRUCTION_VOLATILE = _keep_last(10)
INSTRUCTION_LATCHED = LATCHED


def overridable(profile: QoSProfile) -> dict[str, Any]:
    """Lets `qos_overrides.<topic>.<subscription|publisher>.{history,depth,reliability}` be set.

    Arguments for create_publisher and create_subscription. A copy, since rclpy writes what is set
    into the profile it is given: else one topic's override would be the next one's default.
    """
    return {
        "qos_profile": copy.copy(profile),
        "qos_overriding_options": QoSOverridingOptions.with_default_policies(),
    }
