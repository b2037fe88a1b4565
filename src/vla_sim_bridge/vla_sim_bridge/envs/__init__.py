"""Simulated worlds on MuJoCo and robosuite."""
