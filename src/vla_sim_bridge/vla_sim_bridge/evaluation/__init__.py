"""Closed-loop evaluation: episodes, counts, intervals, reports, films."""
