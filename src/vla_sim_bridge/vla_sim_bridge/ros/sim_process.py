"""Runs a simulation node as a process: signals, errors, exit status."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vla_inference.errors import VlaError
from vla_inference.ros.overrides import refuse_misaddressed, refuse_undeclared
from vla_inference.system import interrupts
from vla_inference.system.workspace import stale_build, unexpected

if TYPE_CHECKING:
    from vla_sim_bridge.ros.sim_node import SimNode


def run(factory: Callable[[], SimNode], args: Sequence[str] | None = None) -> int:
    """Run the node; 0 all episodes done, 1 the run failed, 2 refused, 128 + n by signal n.

    A signal ends the loading at once; later it only asks to stop, so that results are written.
    """
    stop = interrupts.StopSignals()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    node = executor = None
    failed = False
    try:
        with stop.interruptible():
            interrupts.release()
            rclpy.init(
                args=None if args is None else list(args),
                signal_handler_options=SignalHandlerOptions.NO,
            )
            executor = SingleThreadedExecutor()
            node = factory()
            refuse_misaddressed(node, sys.argv if args is None else args)
            refuse_undeclared(node)
            node.stop = lambda: bool(stop.number)
            executor.add_node(node)
            node.load()
        while not node.episodes.finished and not stop.number:
            executor.spin_once(timeout_sec=0.05)
            node.tick()
        if node.episodes.failure is not None:
            raise node.episodes.failure
        if not stop.number:
            node.finish("all episodes done")
    except KeyboardInterrupt:
        pass
    except Exception as error:  # any error: the measurements are kept
        failed = True
        return _fail(node, error)
    finally:
        if stop.number and node is not None and not failed:
            node.finish("interrupted")
        _close(node, executor)
    return 128 + stop.number if stop.number else 0


def _fail(node: SimNode | None, error: Exception) -> int:
    ours = isinstance(error, VlaError) or type(error).__module__.startswith("rclpy")
    text = " ".join(str(error).split()) if ours else stale_build(error)
    if not text:
        traceback.print_exc()
        text = f"{unexpected(error)} with the above"
    begun = node is not None and node.begun
    if node is not None:
        node.finish(text, error=True)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 1 if begun else 2


def _close(node: SimNode | None, executor: SingleThreadedExecutor | None) -> None:
    if executor is not None:
        executor.shutdown(timeout_sec=0.5)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()
