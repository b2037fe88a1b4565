"""Counters and latencies of an inference node, safe to use from several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from vla_inference.serving.rate_meter import RateMeter


class InferenceMetrics:
    """Since activation: answers, refusals, latencies [ms], the age of the last image [ms].

    crash: why the last answer failed by an internal error; empty: it did not.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._watch = RateMeter()
            self._processed = self._refused = self._told = 0
            self._age_ms = 0.0
            self._stages: Mapping[str, float] = {}
            self.last_refusal = self.crash = ""

    @property
    def refused(self) -> int:
        return self._refused

    def answered(self, latency_ms: float, age_ms: float, stages: Mapping[str, float]) -> bool:
        """Counts an answer; True if it is the first one after a crash."""
        with self._lock:
            self._processed += 1
            self._age_ms, self._stages = age_ms, stages
            self._watch.add(latency_ms, time.monotonic())
            recovered, self.crash = bool(self.crash), ""
        return recovered

    def refuse(self, reason: str, images: int) -> None:
        with self._lock:
            self._refused += images
            self.last_refusal = reason

    def fill(self, status: Any) -> None:
        """Fills a vla_msgs/InferenceStatus."""
        with self._lock:
            watch = self._watch
            status.rate = watch.rate(time.monotonic())
            if watch.last == watch.last:  # not NaN: there was one
                status.latency_ms = watch.last
                p95 = watch.p95
                status.latency_p95_ms = p95 if p95 == p95 else watch.last
            status.stage_names = list(self._stages)
            status.stage_ms = list(self._stages.values())
            status.input_age_ms = self._age_ms
            status.processed, status.refused = self._processed, self._refused
            status.last_refusal = self.last_refusal

    def values(self) -> tuple[dict[str, Any], bool]:
        """Values for /diagnostics, and whether something was refused since the last call."""
        with self._lock:
            news, self._told = self._refused != self._told, self._refused
            watch = self._watch
            return {
                "rate [Hz]": f"{watch.rate(time.monotonic()):.1f}",
                "latency [ms]": f"{watch.median:.1f}",
                "latency p95 [ms]": f"{watch.p95:.1f}",
                "input age [ms]": f"{self._age_ms:.1f}",
                "answered": self._processed,
                "refused": self._refused,
                "last refusal": self.last_refusal,
            }, news
