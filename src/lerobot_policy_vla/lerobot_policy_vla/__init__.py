"""Checkpoints of VLA for ROS 2 as policies of LeRobot, under the type `vla`.

LeRobot finds this package by its name and imports it; `configuration_vla`, `modeling_vla` and
`processor_vla` are named by its rule.
"""

from lerobot_policy_vla.configuration_vla import VLAConfig

__all__ = ["VLAConfig"]
