"""Rover: drive to the object that the sentence names and stop in front of it.

D0 three objects ahead, D1 the whole arena from any heading, D2 objects that share a shape or a
colour with the one named, and random light, floor and walls. RoverGate: pass between the two
objects named and stop behind them. RoverRound: go round one on the side named to another.
RoverFollow: stay behind a person who walks, and stop when they do. RoverWord: on the way to an
object, stop when told to.
"""

from vla_sim_bridge.tasks.rover.rules import NEAR
from vla_sim_bridge.tasks.rover.scenes import PERSON, Course, shape_of
from vla_sim_bridge.tasks.rover.tasks import ROVER_TASKS, RoverTask

__all__ = ["NEAR", "PERSON", "ROVER_TASKS", "Course", "RoverTask", "shape_of"]
