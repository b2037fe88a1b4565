"""`vla serve MODEL`: serve a model over openpi's websocket and OpenVLA's REST."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_inference.cli.options import takes
from vla_inference.serving.openpi.settings import ReplicaSettings, ServeSettings


@takes(ServeSettings, ReplicaSettings)
def serve(
    settings: ServeSettings,
    replicas: ReplicaSettings,
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.", metavar="MODEL")],
) -> None:
    """Serve a model over a network: openpi's websocket, OpenVLA's REST, health and metrics."""
    import asyncio
    import logging

    from vla_inference.serving.openpi.server import Server
    from vla_inference.system.interrupts import exit_at_once

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    replicas.check(settings)
    server = Server(None if replicas.ray else lambda: settings.load(model), settings)

    def ready(port: int) -> None:
        offer = server.served.backend.offer
        scheme = "wss" if settings.tls_cert else "ws"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        count = f"{replicas.replicas} replicas, each " if replicas.ray else ""
        print(
            f"serving {offer.name} on {scheme}://{host}:{port} (map {settings.map}, {count}"
            f"{offer.placement}, {offer.latency_ms:.0f} ms per answer)",
            flush=True,
        )

    if replicas.ray:
        from vla_inference.serving.openpi.replicas import Replicas

        with Replicas(model, settings, replicas, server.metrics) as backend:
            server.serve(backend)
            asyncio.run(server.run(ready))
    else:
        server.load()
        asyncio.run(server.run(ready))
    exit_at_once(0)
