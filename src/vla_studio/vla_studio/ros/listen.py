"""The graph's side of `vla listen`: a hidden node that tells what was said, and stops."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Sequence

from rclpy.duration import Duration
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.cli.session import Session, session
from vla_studio.ros.calls import AUDIO_TEXT
from vla_studio.speech.audio import Samples
from vla_studio.speech.listening import Listening
from vla_studio.speech.microphone import microphone
from vla_studio.speech.recogniser import Recogniser

SETTLE = 5.0  # s that subscribers may take to find us
FAREWELL = 1.0  # s for the last text to reach them
PIECE = 800  # samples of a file that are heard at once


class GraphActions:
    """`Actions` in a ROS graph. sentences: in use, beside the instruction in force."""

    def __init__(self, graph: Session, namespace: str, sentences: Sequence[str], instruct: bool):
        self._graph, self._sentences, self._active = graph, sentences, ""
        self._said = graph.node.create_publisher(String, f"{namespace}/{AUDIO_TEXT}", qos.CHUNK)
        self._instruct = (
            graph.node.create_publisher(String, f"{namespace}/instruction", qos.LATCHED)
            if instruct
            else None
        )
        self._enable = graph.node.create_client(SetBool, f"{namespace}/command/enable")
        graph.node.create_subscription(
            String, f"{namespace}/inference/active_instruction", self._on_active, qos.LATCHED
        )

    def _on_active(self, message: String) -> None:
        self._active = message.data

    def known(self) -> Sequence[str]:
        return list(filter(None, dict.fromkeys([*self._sentences, self._active])))

    def said(self, text: str) -> None:
        print(text, flush=True)
        self._said.publish(String(data=text))

    def stop(self) -> None:
        if not self._graph.until(self._enable.service_is_ready, 1.0):
            print("stop: there is no command node", flush=True)
            return
        future = self._enable.call_async(SetBool.Request(data=False))
        self._graph.until(future.done, 1.0)
        print("stopped" if future.done() else "stop: the command node is silent", flush=True)

    def count(self, sentence: str, seconds: int) -> None:
        print(f"in {seconds} s: {sentence}" if seconds else f"cancelled: {sentence}", flush=True)

    def instruct(self, sentence: str) -> None:
        if self._instruct is not None:
            self._instruct.publish(String(data=sentence))
            print(f"instruction: {sentence}", flush=True)

    def flush(self) -> None:
        """Until what was said has reached those who listen."""
        self._said.wait_for_all_acked(Duration(seconds=FAREWELL))
        if self._instruct is not None:
            self._instruct.wait_for_all_acked(Duration(seconds=FAREWELL))

    def ready(self) -> bool:
        """Whether somebody is there to be told."""
        return self._said.get_subscription_count() > 0


def listen(
    recogniser: Recogniser,
    source: Samples | str,
    sentences: Sequence[str],
    seconds: int,
    namespace: str = "",
) -> int:
    """Hears samples to their end, or a microphone of this name until Ctrl-C.

    seconds: of the countdown before an instruction takes effect; 0: none does.
    """
    if namespace and not namespace.startswith("/"):
        raise VlaError(f"namespace {namespace}", f"give /{namespace}")
    with session() as graph:
        actions = GraphActions(graph, namespace, sentences, seconds > 0)
        listening = Listening(recogniser, actions, seconds, time.monotonic)
        graph.until(actions.ready, SETTLE)
        try:
            if isinstance(source, str):
                with microphone(source) as heard:
                    print("listening; Ctrl-C ends it", flush=True)
                    while True:
                        _from_microphone(graph, listening, heard)
            for start in range(0, len(source), PIECE):
                listening.take(source[start : start + PIECE])
                graph.spin(0)
            listening.take(source[:0], last=True)
            while listening.counting:
                graph.spin(0.05)
                listening.look()
            actions.flush()
        except KeyboardInterrupt:
            listening.cancel()
    return 0


def _from_microphone(graph: Session, listening: Listening, heard: queue.Queue[Samples]) -> None:
    graph.spin(0.01)
    listening.look()
    with contextlib.suppress(queue.Empty):
        listening.take(heard.get(timeout=0.05))
