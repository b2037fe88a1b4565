"""Has a running inference node load a checkpoint."""

from __future__ import annotations

from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.ros.cli.session import session
from vla_msgs.srv import LoadModel


def load_model(node: str, checkpoint: Path) -> str:
    """Returns once the node answers with it, with what has changed; VlaError if it refuses.

    node: such as "/inference", whose `model_root` must hold the checkpoint.
    """
    with session() as graph:
        name = graph.absolute(f"{node.rstrip('/')}/load_model")
        answer = graph.call(LoadModel, name, LoadModel.Request(model=str(checkpoint.absolute())))
    if not answer.success:
        raise VlaError(f"{node} keeps its model: {answer.message}", "load it by ~/load_model")
    told = f", other than before: {answer.message}" if answer.message else ""
    return f"{node} answers with {checkpoint}{told}"
