"""What lies on this machine: reports of runs, datasets, models, and what `vla doctor` finds.

Datasets and the machine are looked at by the `vla` command in processes of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from vla_inference.errors import VlaError
from vla_inference.system.prefixes import share_folders
from vla_studio.web.workers import Progress, Workers

USUAL = "stack-small"  # is offered first
MOST = 200  # entries of a list
LOOKED_AT = 20_000  # files and folders, at most, in search of datasets
SECONDS = 120.0  # for a command
REPORT = {
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "text/plain",
    ".md": "text/plain",
    ".txt": "text/plain",
    ".png": "image/png",
    ".mp4": "video/mp4",
    ".webp": "image/webp",
}
# A report is a page of its own, which can run nothing and reach nothing.
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Library:
    """results, data: folders; empty: there is none to show. models: empty: the shipped ones."""

    def __init__(self, results: str, data: str, models: str = ""):
        self._results, self._data = _folder(results), _folder(data)
        shipped = next(iter(share_folders("vla_inference", "models")), None)
        self._models = _folder(models) or (shipped and shipped.resolve())
        self._one = asyncio.Lock()
        self._workers = Workers()

    def parts(self) -> dict[str, bool]:
        """Which parts there are, for the pages."""
        return {"reports": self._results is not None, "datasets": self._data is not None}

    def reports(self) -> list[dict[str, Any]]:
        """Folders below `results` that hold a report, the newest first, with their files."""
        root = _there(self._results, "results", "reports")
        found = []
        for path in _walk(root):
            if path.name in ("report.html", "results.json"):
                found.append((path.stat().st_mtime, path.parent))
        times = {folder: time for time, folder in sorted(found, key=lambda f: f[0])}
        newest = sorted(times, key=lambda folder: -times[folder])[:MOST]
        return [
            {
                "name": str(folder.relative_to(root)),
                "time": times[folder],
                "files": sorted(p.name for p in folder.iterdir() if p.suffix in REPORT),
            }
            for folder in newest
        ]

    def answer(self, request: web.Request) -> web.StreamResponse:
        """A file of a report. Nothing outside `results` is sent, nor what no report holds."""
        root, name = self._results, request.match_info["path"]
        path = None if root is None or "\0" in name else (root / name).resolve()
        inside = root is not None and path is not None and root in path.parents
        if path is None or not inside or path.suffix not in REPORT or not path.is_file():
            return web.Response(status=404, text="there is no such report\n")
        headers = {"Content-Security-Policy": REPORT_POLICY, "Content-Type": REPORT[path.suffix]}
        return web.FileResponse(path, headers=headers)

    def datasets(self) -> dict[str, Any]:
        """Datasets below `data` and models below `models`, as paths in them."""
        return {
            "folder": str(_there(self._data, "data", "datasets")),
            "datasets": self._datasets(),
            "models": self._checkpoints(),
        }

    def _datasets(self) -> list[str]:
        root = _there(self._data, "data", "datasets")
        found: set[Path] = set()
        for path in _walk(root):
            if path.suffix in (".hdf5", ".h5"):
                found.add(path)
            elif path.name in ("dataset_info.json", "metadata.yaml"):  # RLDS, a bag
                found.add(path.parent)
            elif path.name == "info.json" and path.parent.name == "meta":  # LeRobot
                found.add(path.parent.parent)
        return sorted(str(path.relative_to(root)) for path in found if path != root)[:MOST]

    def _checkpoints(self) -> list[str]:
        root = self._models
        if root is None:
            return []
        found = {p.parent for p in _walk(root, linked=True) if p.name == "config.json"}
        names = sorted(str(folder.relative_to(root)) for folder in found)
        return sorted(names, key=lambda name: name != USUAL)[:MOST]

    async def episode(self, dataset: str, index: int) -> dict[str, Any]:
        """An episode's images and actions, as `vla data browse` has them."""
        return await self._browse(dataset, {"do": "episode", "index": index})

    async def compare(
        self, dataset: str, index: int, model: str, progress: Progress
    ) -> dict[str, Any]:
        """A model's answers to an episode's images. progress: called with steps done, of all."""
        if self._models is None or model not in await asyncio.to_thread(self._checkpoints):
            raise VlaError(f"there is no model {model!r:.200}", "choose one of the list")
        request = {"do": "compare", "index": index, "model": str(self._models / model)}
        return await self._browse(dataset, request, progress)

    async def delete(self, dataset: str, index: int, name: str) -> dict[str, Any]:
        """Takes an episode out of a dataset. name: what the page shows it as."""
        return await self._browse(dataset, {"do": "delete", "index": index, "name": name})

    async def restore(self, dataset: str) -> dict[str, Any]:
        """Puts back the episode that was deleted last."""
        return await self._browse(dataset, {"do": "restore"})

    async def tag(self, dataset: str, index: int, name: str, tags: str) -> dict[str, Any]:
        """tags: separated by commas; empty: none."""
        words = [word.strip() for word in tags.split(",") if word.strip()]
        request = {"do": "tag", "index": index, "name": name, "tags": words}
        return await self._browse(dataset, request)

    async def _browse(
        self,
        dataset: str,
        request: dict[str, Any],
        progress: Progress = lambda done, of: None,
    ) -> dict[str, Any]:
        if dataset not in await asyncio.to_thread(self._datasets):
            raise VlaError(f"there is no dataset {dataset!r:.200}", "choose one of the list")
        path = _there(self._data, "data", "datasets") / dataset
        return await self._workers.ask(path, request, progress)

    async def watch(self) -> None:
        """Ends the processes of datasets that nobody looks at any more."""
        await self._workers.watch()

    async def doctor(self) -> dict[str, Any]:
        """What `vla doctor` finds."""
        return await self._vla("doctor", "--json")

    async def _vla(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "vla_inference.cli.main", *words]
        async with self._one:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, err = await asyncio.wait_for(process.communicate(), SECONDS)
            except asyncio.TimeoutError:
                raise VlaError(f"vla {words[0]} took too long", "try it in a terminal") from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
        try:
            return dict(json.loads(out))
        except ValueError:
            said = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise VlaError(f"vla {words[0]} failed: {said[-1][:500]}") from None


def _folder(name: str) -> Path | None:
    return Path(name).expanduser().resolve() if name else None


def _there(folder: Path | None, option: str, what: str) -> Path:
    if folder is None:
        raise VlaError(f"no {what} are shown", f"start the studio with --{option} FOLDER")
    return folder


def _walk(root: Path, linked: bool = False) -> list[Path]:
    """Files below a folder, as many as are looked at. linked: also those that are links."""
    found: list[Path] = []
    folders = [root]
    while folders and len(found) < LOOKED_AT:
        with contextlib.suppress(OSError):
            for entry in sorted(folders.pop().iterdir()):
                link, folder = entry.is_symlink(), entry.is_dir()
                if entry.name.startswith(".") or (link and (folder or not linked)):
                    continue
                (folders if folder else found).append(entry)
    return found
