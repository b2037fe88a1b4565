"""A rover in an arena: its simulation in MuJoCo.

Beside it are `tasks/rover.py`, `experts/rover.py` and `generation/rover.py`.
"""
