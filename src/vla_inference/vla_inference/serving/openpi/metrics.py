"""Counters and histograms of the server, in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)
COUNTERS = {
    "vla_requests_total": "Observations that came.",
    "vla_answers_total": "Action chunks that were sent.",
    "vla_refused_total": "Messages that could not be used.",
    "vla_replaced_total": "Observations that a newer one of the same client replaced.",
    "vla_failed_total": "Answers that the model failed to give.",
    "vla_resets_total": "Resets of a session.",
    "vla_connections_total": "Websockets that were opened.",
    "vla_model_changes_total": "Models that took the place of another.",
    "vla_turned_away_total": "Connections without the key, from a page, or one too many.",
}
HISTOGRAMS = {
    "vla_wait_seconds": (SECONDS, "From an observation's arrival to the model's start."),
    "vla_predict_seconds": (SECONDS, "The model's time for a batch."),
    "vla_batch_size": (SIZES, "Observations that were answered at once."),
}


class Histogram:
    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts = bounds, [0] * len(bounds)
        self.sum, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.sum += value
        self.count += 1
        for i, bound in enumerate(self.bounds):
            self.counts[i] += value <= bound

    def lines(self, name: str) -> Iterator[str]:
        for bound, count in zip(self.bounds, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.sum:.9g}"
        yield f"{name}_count {self.count}"


class ServerMetrics:
    """Metrics written by the model's thread and the sockets' thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}

    def count(self, name: str, number: int = 1) -> None:
        """name: of COUNTERS, without "vla_" and "_total"."""
        with self._lock:
            self._counts[f"vla_{name}_total"] += number

    def add(self, name: str, value: float) -> None:
        """name: of HISTOGRAMS, without "vla_"."""
        with self._lock:
            self._histograms[f"vla_{name}"].add(value)

    def __getitem__(self, name: str) -> int:
        return self._counts[f"vla_{name}_total"]

    def text(self, clients: int, model: str) -> str:
        """clients: websockets that are open."""
        label = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        with self._lock:
            return "\n".join([*self._lines(clients, label), ""])

    def _lines(self, clients: int, label: str) -> Iterator[str]:
        for name, about in COUNTERS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} counter")
            yield f"{name} {self._counts[name]}"
        for name, (_, about) in HISTOGRAMS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
            yield from self._histograms[name].lines(name)
        yield from ("# HELP vla_clients Websockets that are open.", "# TYPE vla_clients gauge")
        yield f"vla_clients {clients}"
        yield from ("# HELP vla_model The model by its name.", "# TYPE vla_model gauge")
        yield f'vla_model{{name="{label}"}} 1'
