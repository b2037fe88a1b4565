"""Conversion between dataset formats."""
