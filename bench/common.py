"""Shared code of the benchmarks: provenance and storage of results.

A result is one JSON object. `provenance` in it says how to get it again: the command, the commit,
the device and the versions of what took part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
# In a checkout that is not built, such as a copy on another machine, the packages are these.
sys.path += map(str, sorted((ROOT / "src").glob("vla_*")))
# Distributions whose version a figure may depend on, by the module that shows they took part.
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "transformers": "transformers",
    "peft": "peft",
    "onnxruntime": "onnxruntime",
    "tvm": "apache-tvm",
    "mujoco": "mujoco",
    "robosuite": "robosuite",
    "numpy": "numpy",
    "h5py": "h5py",
    "pyarrow": "pyarrow",
    "faster_whisper": "faster-whisper",
    "ctranslate2": "ctranslate2",
}


def provenance(**more: Any) -> dict[str, Any]:
    """command, commit, date (UTC), device and versions of this run; `more` is added as it is."""
    return {
        "command": _command(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": device(),
        "versions": versions(),
        **more,
    }


def commit() -> str:
    """The commit that is checked out, "-dirty" where tracked files differ from it.

    VLA_COMMIT, where set, is taken instead: for a copy of the tree without its git history.
    """
    if given := os.environ.get("VLA_COMMIT"):
        return given
    try:
        run = ["git", "-C", str(ROOT)]
        head = subprocess.check_output([*run, "rev-parse", "--short=10", "HEAD"], text=True)
        changes = subprocess.check_output([*run, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("-dirty" if _but_results(changes) else "")


def _but_results(changes: str) -> bool:
    """Whether anything but results has changed: a series of runs keeps each as it comes."""
    return any(not line[3:].startswith("bench/results/") for line in changes.splitlines())


def device() -> str:
    """ "NVIDIA H200" where CUDA was used, else cores and processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        count = torch.cuda.device_count()
        return (f"{count} x " if count > 1 else "") + torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} cores of {_processor()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for module, package in PACKAGES.items():
        if module in sys.modules:
            try:
                version = metadata.version(package)
            except metadata.PackageNotFoundError:
                version = "unknown"
            found[module] = str(getattr(sys.modules[module], "__version__", version))
    return found


def over_ros(task: str, episodes: int, seed: int, language: str = "train") -> dict[str, Any]:
    """results.json of `vla rollout`: the shipped model in the ROS graph, in lock step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vla_inference.cli.main", "rollout", "--task", task]
        command += ["--episodes", str(episodes), "--seed", str(seed), "--language", language]
        command += ["--record", "0", "--output", f"{folder}/results", "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def serving(*command: Any) -> Iterator[str]:
    """A server as a process of its own, stopped at the end: the first line that it prints."""
    words = [sys.executable, *map(str, command)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            sys.exit(f"the server ended with status {process.wait()}")
        yield line.strip()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="write the result there as well, as JSON")


def keep(report: Mapping[str, Any], output: Path | None, show: bool = True) -> None:
    """Print a report and write it, with its provenance, to `output` where that is given."""
    whole = {"provenance": provenance(), **report}
    text = json.dumps(whole, indent=1)
    if show:
        print(text, flush=True)
    if output is not None:
        output.write_text(text + "\n")


def settled(
    parser: argparse.ArgumentParser,
    folder: Callable[[argparse.Namespace], Path],
    free: Collection[str],
    check: Callable[[argparse.Namespace], Any] = lambda _: None,
) -> argparse.Namespace:
    """The options of a command whose results stay in a folder, all of them of the same options.

    The first call keeps them there, but for the `free` ones. A later call may leave them out, and
    is refused where it gives others. `options` of what is returned holds those that are kept.
    check: raises VlaError for what cannot be asked.
    """
    from vla_inference.errors import VlaError
    from vla_training.study.claim import claim, claimed

    path = folder(parser.parse_args()) / "options.json"
    try:
        args = parser.parse_args(namespace=argparse.Namespace(**claimed(path)))
        check(args)
        args.options = claim(path, {k: v for k, v in vars(args).items() if k not in free})
    except VlaError as error:
        parser.error(str(error))
    return args


def spelled(options: Mapping[str, Any]) -> str:
    """Options as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return shlex.join(words)


def is_done(folder: Path) -> bool:
    """Whether the run of a folder came to its end. A checkpoint alone does not say so: a run that
    is stopped leaves one as well."""
    return (folder / "done").is_file()


def finish(folder: Path, run: Callable[[], bool]) -> None:
    """Has a run that is not done go on; exits where it is stopped once more.

    run: returns whether the end was reached.
    """
    if not is_done(folder):
        come_to_end(run())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done").touch()


def come_to_end(finished: bool) -> None:
    if not finished:
        sys.exit("stopped, as asked; the same command continues")


def read(name: str) -> dict[str, Any]:
    """A committed result, by its name in bench/results or its path in the repository."""
    path = next((p for p in (RESULTS / name, ROOT / name) if p.exists()), None)
    if path is None:
        sys.exit(f"there is no result {name}; measure it and keep it there with --output")
    return json.loads(path.read_text())


def _command() -> str:
    words = [sys.argv[0], *sys.argv[1:]]
    try:
        words[0] = str(Path(words[0]).resolve().relative_to(ROOT))
    except ValueError:
        words[0] = Path(words[0]).name
    skipped = {"--output"}
    kept = [w for i, w in enumerate(words) if w not in skipped and words[i - 1] not in skipped]
    return "python " + shlex.join(kept)
