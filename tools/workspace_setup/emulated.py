"""A Python for aarch64 that runs on x86-64 under QEMU's user mode: nothing is installed on the
machine. Debian's arm64 packages are unpacked into a folder, wheels for aarch64 into another."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from workspace_setup.steps import PYTHON, SetupError, run_logged

QEMU = "qemu-aarch64-static"
# The release that Debian 12 has.
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("libc6", "libstdc++6", "libgcc-s1", "libgomp1", "libcrypt1", "zlib1g", "libexpat1"),
    *("libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1"),
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")


def make_emulated(folder: Path, requirements: Path, log: Path) -> None:
    """Makes `folder`/bin/python, which has what `requirements` names."""
    if not shutil.which(QEMU) or not shutil.which("apt-get"):
        raise SetupError(
            f"aarch64 is emulated by {QEMU} with packages of Debian 12; on Debian: apt install "
            "qemu-user-static"
        )
    root, site, state = folder / "root", folder / "site", folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    apt = ["apt-get", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    apt += ["-o", f"Dir::State={state}", "-o", f"Dir::State::status={state / 'status'}"]
    apt += ["-o", f"Dir::Cache={state}", "-o", "APT::Sandbox::User="]
    fetch = f"cd {shlex.quote(str(state))} && {shlex.join(apt)} update && "
    fetch += f"{shlex.join(apt)} download {shlex.join(PACKAGES)} && "
    fetch += f"for deb in *.deb; do dpkg -x $deb {shlex.quote(str(root))}; done"
    run_logged("unpacking Python for aarch64", ["sh", "-ec", fetch], log)
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", "--python-version=311"]
    command += [f"--platform={name}" for name in PLATFORMS]
    command += [f"--target={site}", "-r", str(requirements)]
    run_logged("installing wheels for aarch64", command, log)
    shutil.rmtree(state)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    path, begin = f"{site}:$PYTHONPATH", f"{QEMU} -cpu max -L {shlex.quote(str(root))}"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{path}" exec {begin} {root}/usr/bin/python3.11 "$@"\n'
    )
    python.chmod(0o755)
