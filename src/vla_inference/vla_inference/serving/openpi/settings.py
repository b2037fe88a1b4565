"""`ServeSettings`: the options of `vla serve`."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_inference.policies.base import LoadOptions

KEY_LENGTH = 16  # characters, at least


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Options of the model server."""

    host: str = option(
        "127.0.0.1", "Address to listen on; addresses other than loopback need a key."
    )
    port: int = option(8000, "Port; 0: any free one, which is printed.", low=0, high=65535)
    map: str = option(
        "free",
        "Observation map: libero, droid, aloha, bridge, free, or a file in their form.",
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
    max_clients: int = option(64, "Maximum number of open websockets.", low=1, high=4096)
    max_batch: int = option(16, "Maximum number of observations per batch.", low=1, high=256)
    max_megabytes: int = option(64, "Maximum size of a message.", low=1, high=1024)
    max_rate: float = option(
        1000.0, "Maximum messages per second and client; more are delayed.", above=0.0
    )
    idle: float = option(
        0.0, "Close a websocket after this many seconds without a message; 0: never.", low=0.0
    )
    action_space: str = option("", "Name of the action statistics, if a model has several.")
    device: str = option("", "cpu, cuda, cuda:1; default: CUDA if available.")
    dtype: str = option("", "float32, bfloat16 or float16.")
    engine: str = option(
        "",
        "plain, torch, tvm:FOLDER or mlc:FOLDER; default: torch if it can run.",
        holds=Holds.ENGINE_FOLDER,
    )
    vision: str = option(
        "", "onnx:FOLDER or tensorrt:FOLDER for the vision encoders.", holds=Holds.ENGINE_FOLDER
    )
    quantization: str = option("", "int4, int4-g32, int8, fp8 ...; default: as stored.")
    num_threads: int = option(0, "CPU threads; 0: PyTorch's default.", low=0, high=256)

    def check(self) -> None:
        check_options(self)
        if not self.key_file and not _is_loopback(self.host):
            raise VlaError(
                f"{self.host} can be reached from other machines",
                "give --key-file FILE, or serve on 127.0.0.1 and use an ssh tunnel",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise VlaError("--tls-cert and --tls-key belong together", "give both or none")

    @property
    def load_options(self) -> LoadOptions:
        names = ("device", "dtype", "engine", "vision", "quantization", "action_space")
        return LoadOptions(**{name: getattr(self, name) for name in names})

    def ssl_context(self) -> ssl.SSLContext | None:
        if not self.tls_cert:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise VlaError(
                f"{self.tls_cert} and {self.tls_key} cannot be used ({error})",
                "give a certificate and its key as PEM files",
            ) from None
        return context

    def key(self) -> str:
        return read_key(Path(self.key_file)) if self.key_file else ""


def read_key(path: Path) -> str:
    """The key in a file: its first line."""
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise VlaError(
            f"key file {path} cannot be read ({error})", "write the key there"
        ) from None
    if len(key) < KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise VlaError(
            f"the key in {path} is not {KEY_LENGTH} or more letters and digits on one line",
            f"make one: openssl rand -hex 24 > {path}",
        )
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
