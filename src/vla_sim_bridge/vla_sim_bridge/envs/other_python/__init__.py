"""Worlds that run in a Python of their own, over pipes: robosuite 1.4 and packages built on it."""
