"""CUDA graphs by key, captured when they are first asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Captured:
    """A CUDA graph and what its work returned, which each replay writes anew."""

    graph: torch.cuda.CUDAGraph
    result: Any


class Graphs:
    """Captures work under a key, where it is not yet, and replays it.

    Work reads and writes buffers that stay where they are. All of it shares one pool of memory, so
    that it must be replayed one after the other. kept: how many graphs at most; those that were
    not used for longest go.
    """

    def __init__(self, kept: int):
        self.kept = kept
        self._graphs: OrderedDict[tuple, Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def replay(self, key: tuple, work: Callable[[], Any]) -> Any:
        """What `work` returned when it was captured, of this replay."""
        if key not in self._graphs:
            self._graphs[key] = self._capture(work)
            while len(self._graphs) > self.kept:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        captured = self._graphs[key]
        captured.graph.replay()
        return captured.result

    def drop(self, kind: str) -> None:
        """Forgets those whose key begins with `kind`."""
        for key in [k for k in self._graphs if k[0] == kind]:
            del self._graphs[key]

    def _capture(self, work: Callable[[], Any]) -> Captured:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # compiles kernels, lets libraries choose theirs
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return Captured(graph, result)
