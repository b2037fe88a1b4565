"""Base class of the managed nodes, and how a process runs one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros import diagnostics, parameters
from vla_inference.ros.guard import Guarded
from vla_inference.ros.overrides import refuse_misaddressed, refuse_undeclared
from vla_inference.ros.parameters import Config
from vla_inference.system import interrupts
from vla_inference.system.workspace import stale_build, unexpected

UNCONFIGURED, INACTIVE, ACTIVE, ERROR = "unconfigured", "inactive", "active", "error"

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What every managed node is started with; none of it changes while it runs."""

    autostart: bool = option(
        True, "configure and activate at start; the process ends if that fails"
    )
    end_on_failure: bool = option(
        True,
        "end the process if autostart fails; false: stay unconfigured, so that a launch file "
        "with respawn does not restart it forever",
    )
    locked: bool = option(
        False,
        "refuse every parameter change while the node runs; some parameters are paths of "
        "files and libraries that it loads. The command node's speed alone may still be set",
    )


T = TypeVar("T")


def configured(part: T | None) -> T:
    """A part that `do_configure` makes and `do_cleanup` drops, where it is there for sure."""
    assert part is not None, "the node is not configured"
    return part


class ManagedNode(Guarded, LifecycleNode):
    """A lifecycle node that reports why a transition failed and can start itself.

    Subclasses fill in `do_configure`, `do_activate`, `do_deactivate`, `do_cleanup`; raising there
    makes the transition fail. `do_deactivate` and `do_cleanup` must bear half-built states: they
    are called as well after a `do_activate` or `do_configure` that did not come through.
    `state` is "unconfigured", "inactive", "active", or "error" where the last
    start failed, and `failure` says why. A subclass that names its `TASK` has its `diagnose`
    published on /diagnostics.

    configs: dataclasses whose options are the node's parameters. Those that are not `live` are
    refused while the node is configured.
    """

    TASK = ""
    UNLOCKED: frozenset[str] = frozenset()  # parameters that change even if it is `locked`

    def __init__(self, name: str, *configs: type, **kwargs):
        self.state, self.failure = UNCONFIGURED, ""
        self._activation_begun = self._configured = False
        super().__init__(name, **kwargs)
        parameters.declare(self, StartConfig, read_only=True)
        parameters.declare(self, *configs)
        own = parameters.fields_of(*configs).items()
        self._read_at_configure = {name for name, (_, about) in own if not about.live}
        self.add_on_set_parameters_callback(self._refuse_change)
        self._survive_wrong_transitions()
        if self.TASK:
            diagnostics.Diagnostics(self, self.TASK, self._diagnose)

    def declare_more(self, *configs: type, prefix: str = "", read_only: bool = False) -> None:
        """Declares further parameters, which are read when the node is configured."""
        parameters.declare(self, *configs, prefix=prefix, read_only=read_only)
        self._read_at_configure |= {prefix + name for name in parameters.fields_of(*configs)}

    # -- what subclasses fill in --------------------------------------------------------------

    def do_configure(self) -> None: ...

    def do_activate(self) -> None: ...

    def do_deactivate(self) -> None: ...

    def do_cleanup(self) -> None: ...

    def state_changed(self) -> None:
        """Called after a change of `state` or `failure`."""

    def diagnose(self) -> diagnostics.Report:
        """Level, message and values, while there is no `failure`."""
        return diagnostics.OK, self.state, {}

    # -- transitions --------------------------------------------------------------------------

    def start(self) -> bool:
        """Configures and activates; False if one of them failed (see `failure`)."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        then = partial(super().on_configure, state)
        return self._transition("configure", self._configure, then, INACTIVE)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # Publishers open first, so that what do_activate starts may publish at once.
        first = partial(super().on_activate, state)
        self._activation_begun = True
        return self._transition("activate", first, self.do_activate, ACTIVE)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        then = partial(super().on_deactivate, state)
        self._activation_begun = False
        return self._transition("deactivate", self.do_deactivate, then, INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        then = partial(super().on_cleanup, state)
        return self._transition("clean up", self._cleanup, then, UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        self.state = UNCONFIGURED if self.state != ERROR else ERROR
        self.state_changed()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS  # back to unconfigured; a failure here would end the node for good

    def value(self, name: str) -> Any:
        """A parameter's, as it is now."""
        return self.get_parameter(name).value

    def read(self, config: type[Config]) -> Config:
        """The parameters that are options of this dataclass, as they are now."""
        return parameters.read(config, self.value)

    def _configure(self) -> None:
        refuse_undeclared(self)  # if the caller did not
        self.do_configure()
        self._configured = True

    def _cleanup(self) -> None:
        self._configured = False
        self.do_cleanup()

    def _transition(
        self, name: str, first: Callable[[], Any], second: Callable[[], Any], state: str
    ) -> TransitionCallbackReturn:
        try:
            with interruptible():
                first()
                second()
        except Exception as error:  # a fault of the node's own code is a failed transition too
            self.failure = self._tell(name, error)
            self.state = ERROR
            if name == "configure":
                self._release()
            self.state_changed()
            return FAILURE if name == "configure" else TransitionCallbackReturn.ERROR
        self.state, self.failure = state, ""
        self.state_changed()
        return SUCCESS

    def _refuse_change(self, changed: Sequence[Parameter]) -> SetParametersResult:
        # Those that are not there yet are being declared.
        there = [p.name for p in changed if self.has_parameter(p.name)]
        fixed = [name for name in there if self._configured and name in self._read_at_configure]
        bound = [name for name in there if name not in self.UNLOCKED]
        reason = ""
        if bound and self.value("locked"):
            reason = f"{bound[0]} cannot be changed: the node was started with locked:=true"
        elif fixed:
            reason = f"{fixed[0]} is read when the node is configured; clean it up first"
        return SetParametersResult(successful=not reason, reason=reason)

    def _tell(self, name: str, error: Exception) -> str:
        if isinstance(error, VlaError):
            reason = " ".join(str(error).split())
        else:
            reason = unexpected(error)
            traceback.print_exc()
        self.get_logger().error(f"cannot {name}: {reason}")
        return reason

    def _release(self) -> None:
        """Releases everything, in any state."""
        actions = [self.do_deactivate] if self._activation_begun else []
        self._activation_begun = False
        for action in [*actions, self._cleanup]:
            try:
                action()
            except Exception as error:  # must not keep the rest from being let go of
                self._tell("let go", error)

    def _diagnose(self) -> diagnostics.Report:
        failed: diagnostics.Report = (diagnostics.ERROR, self.failure, {})
        level, message, values = failed if self.failure else self.diagnose()
        return level, message, {**values, **self.fault_values()}

    def _survive_wrong_transitions(self) -> None:
        """Refuses invalid transitions, on which rclpy would end the node."""
        service = getattr(self, "_service_change_state", None)
        if service is None:
            return
        change = service.callback

        def guarded(request, response):
            try:
                return change(request, response)
            except Exception as error:  # rclpy's kind depends on its version
                self.get_logger().warning(
                    f"refused transition {request.transition.label or request.transition.id} "
                    f"in state {self.state}: {' '.join(str(error).split())[:200]}"
                )
                response.success = False
                return response

        service.callback = guarded


# -- running one in a process -----------------------------------------------------------------


TEARDOWN = 5.0  # s that the middleware may take to end
_signals = interrupts.StopSignals()
interruptible, deferred = _signals.interruptible, _signals.deferred


def spin_node(factory: Callable[[], ManagedNode], args: Sequence[str] | None = None) -> int:
    """Run one node until Ctrl-C, SIGTERM or the end of its context; returns the exit status.

    0 after a clean end, 2 if its parameters or its start were refused, 1 after an internal error.
    A node may end itself by setting `exit_status`.
    """
    _signals.number = 0
    previous = {n: signal.signal(n, _signals) for n in (signal.SIGINT, signal.SIGTERM)}
    interrupts.release()
    node = None
    try:
        rclpy.init(
            args=None if args is None else list(args),
            signal_handler_options=SignalHandlerOptions.NO,
        )
        with interruptible():
            node = factory()
            refuse_misaddressed(node, sys.argv if args is None else args)
            refuse_undeclared(node)
        status = _spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        status = 0
    except Exception as error:  # any error becomes a line and a status
        status = _complain(error)
    finally:
        _close(node)
    for number, handler in previous.items():
        # After a Ctrl-C the process is about to end, and Python's own end takes a while: with any
        # handler but this one it puts the default back, and a second Ctrl-C would be its status.
        signal.signal(number, signal.SIG_IGN if _signals.number else handler)
    sys.stdout.flush()
    sys.stderr.flush()
    if any(t.daemon and t is not threading.current_thread() for t in threading.enumerate()):
        # A thread in the midst of a long computation must not hold up the end, and the
        # interpreter's teardown under its feet may abort.
        os._exit(status)
    return status


def _spin(node: ManagedNode) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        started = not node.get_parameter("autostart").value or node.start()
        if not started and node.get_parameter("end_on_failure").value:
            return 2
        while not _signals.number and getattr(node, "exit_status", None) is None:
            # Signals don't wake the wait: a tenth of a second is how late we may notice.
            executor.spin_once(timeout_sec=0.1)
        return getattr(node, "exit_status", None) or 0
    finally:
        executor.shutdown(timeout_sec=0.5)


def _close(node: ManagedNode | None) -> None:
    if node is not None:
        try:
            node.trigger_shutdown()
        except Exception:  # in the middle of a transition, or the context has gone
            node._release()
    # Fast DDS may hang while another participant's lease ends (eProsima/Fast-DDS#6502).
    with interrupts.ended_within(TEARDOWN):
        if node is not None:
            with contextlib.suppress(Exception):  # the context may have gone, here and below
                node.destroy_node()
        with contextlib.suppress(Exception):
            rclpy.try_shutdown()


def _complain(error: Exception) -> int:
    """Logs one line for a user error, with a traceback for an internal one."""
    text = " ".join(str(error).split())
    if isinstance(error, VlaError):
        print(f"error: {text}", file=sys.stderr)
        return 2
    if type(error).__module__.startswith("rclpy"):  # refused parameters and arguments
        print(f"error: {text}; check the node's parameters and arguments", file=sys.stderr)
        return 2
    if told := stale_build(error):
        print(f"error: {told}", file=sys.stderr)
        return 2
    traceback.print_exc()
    print(f"error: {unexpected(error)}", file=sys.stderr)
    return 1
