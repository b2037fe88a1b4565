#!/usr/bin/env python3
"""Set the workspace up: environment, requirements, ROS 2, colcon build. Safe to call every time.

Needs nothing but a Python 3.8 or newer to run under; the environment it makes uses 3.10 to 3.12.
Each step leaves a stamp in .venv/.vla when it is through, with a hash of what it depended on: a
second call does nothing, an interrupted one resumes at the step it was in.

Environment variables:
  VLA_PYTHON    interpreter for .venv (default: the first of 3.10 to 3.12 on PATH, or ROS's own)
  VLA_PIP_ARGS  more arguments for pip, such as an index: "--index-url https://..."
  VLA_NO_ROS    1: ignore /opt/ros, use the ROS 2 wheels
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = VENV / ".vla"
ENV_FILE = VENV / "vla_env.sh"
PYTHON = VENV / "bin" / "python"
OLDEST, NEWEST = (3, 10), (3, 12)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISTROS = ("jazzy", "kilted", "humble")
# Variables that are lists of folders: ours go in front of whatever is there.
PATH_LISTS = (
    "PATH",
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "LD_LIBRARY_PATH",
    "PKG_CONFIG_PATH",
    "PYTHONPATH",
)
# Others that ROS's and colcon's set-up scripts export and nodes need.
PLAIN = ("ROS_DISTRO", "ROS_VERSION", "ROS_PYTHON_VERSION")


class SetupError(Exception):
    """What is missing, and the line that mends it."""


# ---------------------------------------------------------------- small helpers


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
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
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
            f"  the whole log is {log.relative_to(ROOT)}; mend the cause and run the same again"
        )
    say(f"{title}: {time.monotonic() - start:.0f} s")


# ---------------------------------------------------------------- the machine


def machine_ros() -> Path | None:
    """/opt/ros/<distro> where a distribution we know is installed."""
    if os.environ.get("VLA_NO_ROS") == "1":
        return None
    wanted = os.environ.get("ROS_DISTRO", "")
    for distro in ([wanted] if wanted in DISTROS else []) + list(DISTROS):
        if Path("/opt/ros", distro, "setup.bash").is_file():
            return Path("/opt/ros", distro)
    return None


def python_version(executable: str) -> tuple[int, int] | None:
    # A pyenv shim of a version that isn't selected exists and fails: only running it tells.
    text = output(executable, "-ISc", "import sys; print(*sys.version_info[:2])")
    try:
        major, minor = map(int, (text or "").split())
    except ValueError:
        return None
    return (major, minor)


def find_python(ros: Path | None) -> str:
    if os.environ.get("VLA_PYTHON"):
        names = [os.environ["VLA_PYTHON"]]
    elif ros:  # rclpy is compiled for exactly the distribution's Python
        names = ["/usr/bin/python3"]
    else:
        names = ["python3", "python3.12", "python3.11", "python3.10"]
    seen = []
    for name in names:
        path = shutil.which(name)
        version = python_version(path) if path else None
        if version and OLDEST <= version <= NEWEST:
            return path
        if version:
            seen.append(f"{name} is {version[0]}.{version[1]}")
        elif os.environ.get("VLA_PYTHON"):
            seen.append(f"VLA_PYTHON={name} cannot be run")
    found = f" ({', '.join(seen)})" if seen else ""
    raise SetupError(
        f"no Python 3.10 to 3.12 found{found}; install one, such as python3.11, or set "
        "VLA_PYTHON=/path/to/python3.x"
    )


def loads(*libraries: str) -> bool:
    for name in libraries:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def missing_packages(python: str) -> list[tuple[str, str]]:
    """(what is missing, Debian package) of everything the set-up can't bring itself."""
    probe = (
        "import importlib.util as u, os, sysconfig as s; "
        "print(int(all(map(u.find_spec, ('venv', 'ensurepip')))), "
        "int(os.path.exists(os.path.join(s.get_path('include'), 'Python.h'))))"
    )
    has_venv, has_headers = (output(python, "-Ic", probe) or "0 0").split()
    version = python_version(python) or OLDEST
    own = f"python{version[0]}.{version[1]}"
    missing = []
    if has_venv == "0":
        missing.append(("Python's venv module", f"{own}-venv"))
    if has_headers == "0":
        missing.append(("Python's headers", f"{own}-dev"))
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    if not (compiler and any(map(shutil.which, ("cc", "gcc", "clang")))):
        missing.append(("a C/C++ compiler", "g++"))
    if not (shutil.which("make") or shutil.which("ninja")):
        missing.append(("make", "make"))
    if not shutil.which("cmake"):
        missing.append(("cmake", "cmake"))
    # OpenCV, which robosuite imports, is linked against these two.
    if not loads("libGL.so.1"):
        missing.append(("libGL", "libgl1"))
    if not loads("libgthread-2.0.so.0"):
        missing.append(("GLib", "libglib2.0-0"))
    if not loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") and not loads("libEGL.so.1"):
        # Newer distributions no longer have OSMesa; software EGL serves as well.
        if output("apt-cache", "show", "libosmesa6"):
            missing.append(("off-screen OpenGL", "libosmesa6"))
        else:
            missing.append(("off-screen OpenGL", "libegl1"))
            missing.append(("its software driver", "libgl1-mesa-dri"))
    return missing


def system_libraries(python: str) -> None:
    missing = missing_packages(python)
    if not missing:
        return
    what = ", ".join(w for w, _ in missing)
    packages = [p for _, p in missing]
    line = "apt-get install -y --no-install-recommends " + " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SetupError(
            f"this machine lacks {what}; run this line, then the same command again:\n"
            f"  sudo apt-get update && sudo {line}"
        )
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["sh", "-c", f"apt-get update && {line}"]
    run_logged(f"installing {what} with apt", command, ROOT / "log" / "setup-apt.log", env)
    left = missing_packages(python)
    if left:
        raise SetupError(f"{line} ran, yet {left[0][0]} is still missing; install it by hand")


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


# ---------------------------------------------------------------- the environment


def make_venv(ros: Path | None, python: str | None) -> None:
    key = digest("venv", str(VENV), str(ros))
    version = python_version(str(PYTHON)) if PYTHON.exists() else None
    usable = version is not None and OLDEST <= version <= NEWEST
    if done("venv", key) and usable:
        return
    # One whose making was interrupted has no pip yet.
    usable = usable and output(str(PYTHON), "-m", "pip", "--version") is not None
    system_libraries(python)
    if usable and not (STATE / "venv").exists() and not ros:
        say(f"using the .venv that is there (Python {version[0]}.{version[1]})")
    else:
        version = python_version(python) or OLDEST
        kind = ["--system-site-packages"] if ros else []
        title = f"making .venv with Python {version[0]}.{version[1]}"
        title += f" over {ros}" if ros else ""
        command = [python, "-m", "venv", "--clear", *kind, str(VENV)]
        run_logged(title, command, ROOT / "log" / "setup-venv.log")
    (VENV / "COLCON_IGNORE").touch()
    mark("venv", key)


def cpu_torch_arguments() -> list[str]:
    """Where there is no NVIDIA GPU: PyTorch's CPU wheels instead of gigabytes of CUDA."""
    if os.environ.get("VLA_PIP_ARGS") or has_nvidia() or platform.machine() != "x86_64":
        return []
    try:
        urllib.request.urlopen(TORCH_CPU_INDEX + "/torch/", timeout=4).close()
    except (OSError, ValueError):
        return []  # behind a mirror or off line: pip's own settings decide
    return ["--extra-index-url", TORCH_CPU_INDEX]


def pip_install(name: str, title: str, ros: Path | None) -> bool:
    """Install requirements/<name>.txt; False where that had been done."""
    file = ROOT / "requirements" / f"{name}.txt"
    key = digest(str(ros), file, ROOT / "requirements" / "build.txt")
    if done(f"pip-{name}", key):
        return False
    more: list[str] = []
    if name == "torch":
        if output(str(PYTHON), "-c", "import torch") is not None and ros:
            say("keeping the PyTorch that is installed")  # Jetson: NVIDIA's own build
            mark(f"pip-{name}", key)
            return False
        more = cpu_torch_arguments()
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--prefer-binary", "-r", str(file), *more]
    command += shlex.split(os.environ.get("VLA_PIP_ARGS", ""))
    run_logged(title, command, ROOT / "log" / f"setup-pip-{name}.log")
    mark(f"pip-{name}", key)
    return True


def patch_exports() -> None:
    """The wheels' CMake files name the folders of the machine they were built on."""
    probe = (
        "import sysconfig, numpy; print(sysconfig.get_path('include')); print(numpy.get_include())"
    )
    include, numpy_include = (output(str(PYTHON), "-c", probe) or "\n").split("\n")
    if not include:
        raise SetupError("NumPy doesn't import in .venv; remove .venv and run the same again")
    base = r"/opt/python/cp3\d+-cp3\d+"
    for file in VENV.glob("share/*/cmake/*.cmake"):
        text = file.read_text(errors="surrogateescape")
        new = re.sub(base + r'/lib/python3\.\d+/site-packages/numpy/[^";]*include', numpy_include,
                     text)  # fmt: skip
        new = re.sub(base + r"/include/python3\.\d+", include, new)
        if new != text:
            file.write_text(new, errors="surrogateescape")


def base_exports(ros: Path | None) -> list[str]:
    """Shell lines that lead from an empty environment to one in which the workspace builds."""
    lines = [f"export VIRTUAL_ENV={shlex.quote(str(VENV))}"]
    if ros:
        lines.append(f". {ros}/setup.bash")
    else:
        libraries = [
            str(VENV / "lib"),
            *map(str, VENV.glob("lib/python3*/site-packages/ros_*.libs")),
        ]
        lines += [
            f"export AMENT_PREFIX_PATH={shlex.quote(str(VENV))}",
            f"export CMAKE_PREFIX_PATH={shlex.quote(str(VENV))}",
            f"export LD_LIBRARY_PATH={shlex.quote(os.pathsep.join(libraries))}",
            # What the wheels' start-up hook would do by running each interpreter twice
            "export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1",
            "export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3",
        ]
    return [*lines, f'export PATH={shlex.quote(str(VENV / "bin"))}:"$PATH"']


def build_key(ros: Path | None) -> str:
    """Hash of all that a build depends on; Python code isn't among it, being linked to."""
    patterns = ("package.xml", "CMakeLists.txt", "setup.py", "setup.cfg", "colcon.pkg",
                "msg/*", "srv/*", "action/*", "scripts/*", "resource/*")  # fmt: skip
    files = sorted(f for p in patterns for f in (ROOT / "src").glob("*/" + p) if f.is_file())
    installed = sorted(
        str(f.relative_to(ROOT))
        for folder in ("launch", "config", "models")
        for f in (ROOT / folder).rglob("*")
        if f.is_file() and not f.name.startswith(".")
    )
    meta = [ROOT / "colcon.meta", ROOT / "requirements" / "ros_jazzy.txt"]
    return digest(str(ROOT), str(ros), *map(str, files), *files, *installed, *meta)


def build(ros: Path | None) -> bool:
    key = build_key(ros)
    setup = ROOT / "install" / "local_setup.bash"
    if done("build", key) and setup.exists():
        return False
    command = [
        str(PYTHON), "-m", "colcon", "--log-base", str(ROOT / "log" / "colcon"), "build",
        "--base-paths", str(ROOT / "src"), "--build-base", str(ROOT / "build"),
        "--install-base", str(ROOT / "install"), "--symlink-install",
        "--event-handlers", "console_direct+", "--cmake-args", f"-DPython3_EXECUTABLE={PYTHON}",
    ]  # fmt: skip
    script = "\n".join([*base_exports(ros), "exec " + shlex.join(command)])
    env = clean_environment()
    env["PYTHONWARNINGS"] = "ignore"  # setuptools' on `develop`, which colcon calls
    run_logged("colcon build", ["bash", "-c", script], ROOT / "log" / "setup-colcon.log", env)
    # colcon keeps links to files that are gone
    for link in (ROOT / "install").glob("*/share/**/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    mark("build", key)
    return True


def clean_environment() -> dict[str, str]:
    """Ours without any workspace's traces: what is built mustn't depend on them."""
    drop = {*PATH_LISTS, *PLAIN, "VIRTUAL_ENV", "PYTHONHOME", "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    env = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("COLCON_")}
    path = [p for p in os.environ.get("PATH", os.defpath).split(os.pathsep)
            if not p.startswith(str(ROOT) + os.sep)]  # fmt: skip
    return {**env, "PATH": os.pathsep.join(path)}


# ---------------------------------------------------------------- what a shell sources


def working_gl() -> str:
    """The first off-screen OpenGL that MuJoCo draws a picture with: "egl" or "osmesa"."""
    probe = (
        "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco><worldbody>"
        '<geom size="1"/></worldbody></mujoco>\'); r = mujoco.Renderer(m, 16, 16); '
        "d = mujoco.MjData(m); mujoco.mj_forward(m, d); r.update_scene(d); r.render()"
    )
    for name in ("egl", "osmesa") if has_nvidia() else ("osmesa", "egl"):
        env = {**clean_environment(), "MUJOCO_GL": name}
        if output(str(PYTHON), "-c", probe, env=env) is not None:
            return name
    raise SetupError(
        "MuJoCo can't draw a picture with OSMesa or EGL; run this line, then the same again:\n"
        "  sudo apt-get update && sudo apt-get install -y libosmesa6 libegl1 libgl1-mesa-dri"
    )


def write_environment(ros: Path | None, gl: str) -> None:
    """Write `vla_env.sh` with what sourcing everything leads to: a source of it costs nothing."""
    lines = [*base_exports(ros), f". {shlex.quote(str(ROOT / 'install' / 'local_setup.bash'))}"]
    script = "\n".join([*lines, "env -0"])
    before = {**clean_environment(), "PATH": "/usr/bin:/bin"}
    after = subprocess.run(
        ["bash", "-c", script], env=before, cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    values = dict(entry.partition("=")[::2] for entry in after.split("\0") if entry)
    text = [
        "# Written by tools/setup.py; source it in bash or zsh to work in this workspace.",
        f'if [ "${{VLA_WORKSPACE:-}}" != {shlex.quote(str(ROOT))} ]; then',
        f"  export VLA_WORKSPACE={shlex.quote(str(ROOT))}",
        f"  export VIRTUAL_ENV={shlex.quote(str(VENV))}",
    ]
    for name in PATH_LISTS:
        entries = [e for e in values.get(name, "").split(os.pathsep) if e]
        entries = [e for e in entries if not (name == "PATH" and e in ("/usr/bin", "/bin"))]
        if entries:
            joined = shlex.quote(os.pathsep.join(entries))
            text.append(f'  export {name}={joined}"${{{name}:+:${name}}}"')
    for name in (*PLAIN, "_ROS_WHEELS_BOOTSTRAP_COMPLETE"):
        if name in values:
            text.append(f"  export {name}={shlex.quote(values[name])}")
    if not ros:  # the wheels have no other
        text.append('  export RMW_IMPLEMENTATION="${RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}"')
    text += [f'  export MUJOCO_GL="${{MUJOCO_GL:-{gl}}}"', "fi"]
    partial = ENV_FILE.with_suffix(".part")
    partial.write_text("\n".join(text) + "\n")
    partial.replace(ENV_FILE)


# ---------------------------------------------------------------- all of it


def setup(dev: bool) -> None:
    start = time.monotonic()
    ros = machine_ros()
    names = ["torch", "runtime", "build" if ros else "ros_jazzy"] + (["dev"] if dev else [])
    if dev and not has_nvidia() and platform.machine() == "x86_64":
        names.append("triton")  # PyTorch for a GPU brings its own
    titles = {
        "torch": "installing PyTorch",
        "runtime": "installing simulator and libraries",
        "build": "installing colcon",
        "ros_jazzy": "installing ROS 2 Jazzy wheels and colcon",
        "dev": "installing test tools",
        "triton": "installing Triton's interpreter",
    }
    venv_key = digest("venv", str(VENV), str(ros))
    python = None
    if not done("venv", venv_key) or not PYTHON.exists():
        python = find_python(ros)
        say("first set-up: a few minutes, most of it downloads (safe to stop and run again)")
        if not ros and platform.machine() != "x86_64":
            raise SetupError(
                f"ROS 2 wheels exist for x86_64 only and this machine is {platform.machine()}; "
                "install ROS 2 Humble, Jazzy or Kilted under /opt/ros, then run the same again"
            )
    make_venv(ros, python or str(PYTHON))
    changed = [pip_install(n, titles[n], ros) for n in names]
    base = digest(*(note + "\n" for note in [venv_key, *map(pip_stamp, names[:3])]))
    if not done("patch", base):
        if not ros:
            patch_exports()
        mark("patch", base)
    if not done("gl", base):
        mark("gl", base, working_gl())
    built = build(ros)
    gl = note_of("gl")
    env_key = digest(base, build_key(ros), gl, Path(__file__))
    if built or not ENV_FILE.exists() or not done("env", env_key):
        write_environment(ros, gl)
        mark("env", env_key)
    if python or built or any(changed):
        say(f"ready ({time.monotonic() - start:.0f} s)")


def pip_stamp(name: str) -> str:
    with contextlib.suppress(OSError):
        return (STATE / f"pip-{name}").read_text()
    return ""


@contextlib.contextmanager
def locked():
    """Only one set-up at a time; the lock is on the folder, so it leaves no file behind."""
    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        for _ in range(20):  # a call with nothing to do is over in a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dev", action="store_true", help="test and lint tools too")
    options = parser.parse_args()
    # A kill shall end pip and colcon too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with locked():
            setup(options.dev)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; run the same again to go on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
