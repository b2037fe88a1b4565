"""Parses a server's address: `ws://HOST:PORT/PATH?map=libero&timeout=5`."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from vla_inference.errors import VlaError
from vla_inference.options import check_options, option
from vla_inference.serving.network import read_key


def without_secrets(url: str) -> str:
    """A URL without user, password and query."""
    return re.sub(r"//[^/?#]*@", "//", url.partition("?")[0])


@dataclass(frozen=True)
class Address:
    """url: without what is for the client. The other fields may stand in the URL's query."""

    url: str
    map: str = option("", "Observation map; empty: what the server says.")
    timeout: float = option(5.0, "Seconds for an answer.", low=0.01, high=600.0)
    images: int = option(0, "Cameras to send; 0: all of the map.", low=0, high=64)
    key_file: str = option("", "File with the server's key.")
    ca: str = option("", "File with certificates (PEM) to trust, for wss.")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parses an address. Raises VlaError."""
        shown = without_secrets(text)
        try:
            parts = urlsplit(text)
            good = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port or True)
        except ValueError:  # the port is no number, or a bracket lacks its other
            good = False
        if not good:
            raise VlaError(
                f"{shown!r:.80} is not a server's address", "give openpi:ws://HOST:PORT"
            )
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls) if f.name != "url"}
        query = parse_qsl(parts.query, keep_blank_values=True)
        given = {name: value for name, value in query if name in kinds}
        others = [(name, value) for name, value in query if name not in kinds]
        try:
            values = {name: kinds[name](value) for name, value in given.items()}
        except ValueError:
            raise VlaError(f"{shown!r:.80} has a number that is none", "correct it") from None
        url = urlunsplit(parts._replace(query=urlencode(others), path=parts.path or "/"))
        found = cls(url, **values)
        check_options(found, called="{} of the address".format)
        return found

    @property
    def shown(self) -> str:
        """The URL for people to read."""
        return without_secrets(self.url)

    @property
    def server(self) -> str:
        """Host and port, for names and messages."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def headers(self) -> dict[str, str]:
        return (
            {"Authorization": f"Api-Key {read_key(Path(self.key_file))}"} if self.key_file else {}
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The certificates to trust; None: the system's."""
        if not self.ca:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise VlaError(f"{self.ca} cannot be used ({error})", "give a PEM file") from None
