"""Times the stages of one prediction."""

from __future__ import annotations

import time

import torch


class StageTimer:
    """Milliseconds per stage. On CUDA it uses events, so that no stage waits for the previous
    one."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.begin = time.perf_counter()
        self.marks: list[tuple[str, float, torch.cuda.Event | None]] = []

    def mark(self, stage: str) -> None:
        event = None
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.append((stage, time.perf_counter(), event))

    def finish(self) -> dict[str, float]:
        if self.marks and (latest := self.marks[-1][2]) is not None:
            latest.synchronize()
        total = 1e3 * (time.perf_counter() - self.begin)
        stages: dict[str, float] = {}
        last, last_event = self.begin, None
        for stage, now, event in self.marks:
            spent = 1e3 * (now - last)
            if last_event is not None and event is not None:
                spent = last_event.elapsed_time(event)
            stages[stage] = stages.get(stage, 0.0) + spent
            last, last_event = now, event
        return {**stages, "total": total}
