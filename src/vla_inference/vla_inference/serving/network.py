"""What servers on a network share: keys, addresses, TLS."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from vla_inference.errors import VlaError

KEY_LENGTH = 16  # characters, at least


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


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """For a server, from PEM files; None where none are named."""
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise VlaError(
            f"{certificate} and {key} cannot be used ({error})",
            "give a certificate and its key as PEM files",
        ) from None
    return context
