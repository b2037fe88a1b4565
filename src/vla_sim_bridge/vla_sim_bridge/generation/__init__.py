"""Demonstrations by the thousand, from scripted experts and MimicGen."""
