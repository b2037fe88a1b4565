"""Simulated environments on MuJoCo and robosuite."""
