"""`ServeSettings`: the options of `vla serve`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_inference.policies.base import LoadOptions, Policy
from vla_inference.policies.registry import load_policy
from vla_inference.serving.network import is_loopback, read_key, tls_context


@dataclass(frozen=True, kw_only=True)
class ServeSettings(LoadOptions):
    """Options of the model server."""

    host: str = option(
        "127.0.0.1", "Address to listen on; addresses other than loopback need a key."
    )
    port: int = option(8000, "Port; 0: any free one, which is printed.", low=0, high=65535)
    map: str = option(
        "free",
        "Observation map: aloha, bridge, droid, droid_jointpos, free, libero, libero_oft, "
        "libero_pi, or a file.",
        holds=Holds.NAME_OR_PATH,
    )
    instruction: str = option("", "Instruction for observations without one.")
    dialect: str = option(
        "openpi",
        "Metadata: openpi, or only the six keys of roboarena.",
        choices=("openpi", "roboarena"),
    )
    key_file: str = option("", "File with the key that clients must send.", holds=Holds.PATH)
    tls_cert: str = option("", "Certificate (PEM), for wss and https.", holds=Holds.PATH)
    tls_key: str = option("", "Its private key (PEM).", holds=Holds.PATH)
    max_clients: int = option(
        64, "Maximum number of open websockets, and of REST requests at once.", low=1, high=4096
    )
    max_batch: int = option(16, "Maximum number of observations per batch.", low=1, high=256)
    max_megabytes: int = option(64, "Maximum size of a message.", low=1, high=1024)
    max_rate: float = option(
        1000.0, "Maximum messages per second and client; more are delayed.", above=0.0
    )
    idle: float = option(
        0.0, "Close a websocket after this many seconds without a message; 0: never.", low=0.0
    )
    model_root: str = option(
        "", "Folder from which POST /model may load models; default: no changes.", holds=Holds.PATH
    )
    num_threads: int = option(0, "CPU threads; 0: PyTorch's default.", low=0, high=256)

    def check(self) -> None:
        check_options(self)
        if not self.key_file and not is_loopback(self.host):
            raise VlaError(
                f"{self.host} can be reached from other machines",
                "give --key-file FILE (a node: serve_key_file), or serve on 127.0.0.1 and use an "
                "ssh tunnel",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise VlaError("TLS certificate and key belong together", "give both or none")

    @property
    def load_options(self) -> LoadOptions:
        return LoadOptions.of(self, self.action_space)

    def load(self, model: str, action_space: str = "") -> Policy:
        """The policy of a model. action_space: instead of the one that is set."""
        if self.num_threads:
            import torch

            torch.set_num_threads(self.num_threads)
        options = self.load_options
        if action_space:
            options = replace(options, action_space=action_space)
        return load_policy(model, options)

    def ssl_context(self) -> ssl.SSLContext | None:
        return tls_context(self.tls_cert, self.tls_key)

    def key(self) -> str:
        return read_key(Path(self.key_file)) if self.key_file else ""


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """Options of a server whose model runs in replicas."""

    ray: bool = option(False, "Run the model in replicas by Ray Serve.")
    replicas: int = option(1, "Number of replicas, each a process.", low=1, high=1024)
    ray_address: str = option("local", "Ray cluster to use; local: one on this machine.")

    def check(self, settings: ServeSettings) -> None:
        check_options(self)
        if not self.ray and (self.replicas, self.ray_address) != (1, "local"):
            raise VlaError("--replicas and --ray-address are for --ray", "give that as well")
        if self.ray and settings.model_root:
            raise VlaError("--model-root cannot change the model of replicas", "leave it out")
        if self.ray and ":" in settings.device:
            raise VlaError(f"--device is {settings.device}", "Ray chooses the GPU: give cuda")
