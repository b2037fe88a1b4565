"""Shared code of the steps: paths, stamps, running and reporting commands."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STATE = VENV / ".vla"
ENV_FILE = VENV / "vla_env.sh"
PYTHON = VENV / "bin" / "python"
OLDEST, NEWEST = (3, 10), (3, 12)


class SetupError(Exception):
    """What is missing, and the line that fixes it."""


def say(text: str, end: str = "\n") -> None:
    print(
        "\r\033[K[setup] " + text if sys.stderr.isatty() else "[setup] " + text,
        end=end,
        file=sys.stderr,
        flush=True,
    )


def digest(*parts: str | bytes | Path) -> str:
    """Hash of texts and of the content of files."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes() if part.is_file() else b"-"
        h.update(part.encode() if isinstance(part, str) else part)
        h.update(b"\0")
    return h.hexdigest()


def done(step: str, key: str) -> bool:
    try:
        return (STATE / step).read_text().split("\n")[0] == key
    except OSError:
        return False


def mark(step: str, key: str, note: str = "") -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    partial = STATE / (step + ".part")
    partial.write_text(f"{key}\n{note}\n")
    partial.replace(STATE / step)


def note_of(step: str) -> str:
    try:
        return (STATE / step).read_text().split("\n")[1]
    except (OSError, IndexError):
        return ""


def output(*command: str, env: dict | None = None) -> str | None:
    """Standard output of a short command, or None where it fails."""
    try:
        r = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return r.stdout.strip() if r.returncode == 0 else None


def run_logged(title: str, command: list[str], log: Path, env: dict | None = None) -> None:
    """Run a long command into `log`; one line tells of it, its last output line shows life."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start, shown = time.monotonic(), 0.0
    say(f"{title} ...", end="" if sys.stderr.isatty() else "\n")
    with log.open("w") as out:
        out.write(shlex.join(command) + "\n")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            for line in process.stdout:
                out.write(line)
                now = time.monotonic()
                if sys.stderr.isatty() and line.strip() and now - shown > 0.2:
                    shown = now
                    width = shutil.get_terminal_size().columns - 12
                    say(f"{title} ({now - start:.0f} s) {line.strip()}"[:width], end="")
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
            raise
    if code:
        lines = log.read_text(errors="replace").splitlines()
        errors = [x for x in lines if re.search(r"\berror\b|stderr:", x, re.I)] or lines
        tail = "\n  ".join(errors[-6:])
        raise SetupError(
            f"{title} failed (status {code}):\n  {tail}\n"
            f"  the whole log is {log.relative_to(ROOT)}; fix the cause and run the same again"
        )
    say(f"{title}: {time.monotonic() - start:.0f} s")
