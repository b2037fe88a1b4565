"""The steps of `tools/setup.py`. Standard library only, Python 3.8 or newer."""
