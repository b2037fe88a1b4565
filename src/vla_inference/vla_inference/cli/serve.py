"""`vla serve MODEL`: serve a model over openpi's websocket and OpenVLA's REST."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_inference.cli.options import takes
from vla_inference.serving.openpi.settings import ServeSettings


@takes(ServeSettings)
def serve(
    settings: ServeSettings,
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.", metavar="MODEL")],
) -> None:
    """Serve a model over a network: openpi's websocket, OpenVLA's REST, health and metrics."""
    import asyncio
    import logging

    from vla_inference.policies.registry import load_policy
    from vla_inference.serving.openpi.server import Server
    from vla_inference.system.interrupts import exit_at_once

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def load():
        if settings.num_threads:
            import torch

            torch.set_num_threads(settings.num_threads)
        return load_policy(model, settings.load_options)

    server = Server(load, settings)
    policy = server.load()

    def ready(port: int) -> None:
        scheme = "wss" if settings.tls_cert else "ws"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(
            f"serving {policy.name} on {scheme}://{host}:{port} (map {settings.map}, "
            f"{policy.placement}, {server.batcher.latency_ms:.0f} ms per answer)",
            flush=True,
        )

    asyncio.run(server.run(ready))
    exit_at_once(0)
