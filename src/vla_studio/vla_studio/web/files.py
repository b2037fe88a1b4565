"""The page's files, all read at start: a request names one of them or gets nothing."""

from __future__ import annotations

from importlib import resources
from importlib.abc import Traversable

from aiohttp import web

KINDS = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}
# Scripts, styles and connections of this server alone; nothing inline, nobody's frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def read_files() -> dict[str, tuple[str, bytes]]:
    """Path of a request -> content type and content."""
    found: dict[str, tuple[str, bytes]] = {}
    _collect(resources.files("vla_studio") / "page", "/", found)
    found["/"] = found["/index.html"]
    return found


def _collect(folder: Traversable, path: str, found: dict[str, tuple[str, bytes]]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{path}{entry.name}/", found)
        elif kind := KINDS.get(entry.name.rpartition(".")[2]):
            found[path + entry.name] = kind, entry.read_bytes()


class Files:
    def __init__(self) -> None:
        self._files = read_files()

    def answer(self, request: web.Request) -> web.Response:
        if request.path not in self._files:
            return web.Response(status=404, text="there is no such page\n")
        kind, content = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")
