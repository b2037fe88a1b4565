"""The steps of `tools/setup.py`. Only the standard library, and Python 3.8 or newer."""
