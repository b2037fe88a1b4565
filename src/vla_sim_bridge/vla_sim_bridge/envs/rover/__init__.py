"""A rover in an arena: its simulation in MuJoCo.

Beside it are `tasks/rover/`, `experts/rover.py` and `generation/rover.py`.
"""
