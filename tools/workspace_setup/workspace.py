"""Builds the workspace and writes the file that a shell sources to work in it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from workspace_setup.machine import has_nvidia, wheels
from workspace_setup.steps import (
    ENV_FILE,
    PYTHON,
    ROOT,
    VENV,
    SetupError,
    digest,
    done,
    mark,
    output,
    run_logged,
)

# Variables that are lists of folders: ours are put in front.
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
            f"export ROS_DISTRO={wheels()[4:]} ROS_VERSION=2 ROS_PYTHON_VERSION=3",
        ]
    return [*lines, f'export PATH={shlex.quote(str(VENV / "bin"))}:"$PATH"']


def base_paths(ros: Path | None, tests: bool) -> list[Path]:
    """Where the packages to build are; once tests were asked for, their interfaces stay."""
    built = ROOT / "install" / "control_msgs"
    foreign = ros is not None and (ros / "share" / "control_msgs").is_dir()
    interfaces = (tests or built.is_dir()) and not foreign
    return [ROOT / "src", *([ROOT / "test" / "interfaces"] if interfaces else [])]


def build_key(ros: Path | None, tests: bool) -> str:
    """Hash of all that a build depends on; Python code isn't among it, being linked to."""
    patterns = (
        "package.xml",
        "CMakeLists.txt",
        "setup.py",
        "setup.cfg",
        "colcon.pkg",
        "msg/*",
        "srv/*",
        "action/*",
        "scripts/*",
        "resource/*",
    )
    folders = base_paths(ros, tests)
    files = sorted(f for b in folders for p in patterns for f in b.glob("*/" + p) if f.is_file())
    installed = sorted(
        str(f.relative_to(ROOT))
        for folder in ("launch", "config", "models")
        for f in (ROOT / "src").glob(f"*/{folder}/**/*")
        if f.is_file() and not f.name.startswith(".")
    )
    meta = [ROOT / "colcon.meta", ROOT / "requirements" / f"{wheels()}.txt"]
    return digest(str(ROOT), str(ros), *map(str, files), *files, *installed, *meta)


def build(ros: Path | None, tests: bool) -> bool:
    if is_built(ros, tests):
        return False
    key = build_key(ros, tests)
    command = [
        str(PYTHON),
        "-m",
        "colcon",
        "--log-base",
        str(ROOT / "log" / "colcon"),
        "build",
        "--base-paths",
        *map(str, base_paths(ros, tests)),
        "--build-base",
        str(ROOT / "build"),
        "--install-base",
        str(ROOT / "install"),
        "--symlink-install",
        "--event-handlers",
        "console_direct+",
        "--cmake-args",
        f"-DPython3_EXECUTABLE={PYTHON}",
    ]
    if not ros:  # no C++ nodes are built on the wheels, and that saves half of the build
        command += [
            "-DVLA_LEFT_OUT=_cpp",
            *[f"-DCMAKE_{c}_FLAGS_RELEASE=-O0" for c in ("C", "CXX")],
        ]
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


def is_built(ros: Path | None, tests: bool) -> bool:
    there = (ROOT / "install" / "local_setup.bash").exists()
    return there and done("build", build_key(ros, tests))


def clean_environment() -> dict[str, str]:
    """Ours without any workspace's traces: what is built mustn't depend on them."""
    drop = {*PATH_LISTS, *PLAIN, "VIRTUAL_ENV", "PYTHONHOME", "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    env = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("COLCON_")}
    path = [
        p
        for p in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if not p.startswith(str(ROOT) + os.sep)
    ]
    return {**env, "PATH": os.pathsep.join(path)}


def working_gl() -> str:
    """The first off-screen OpenGL that MuJoCo draws an image with: "egl" or "osmesa"."""
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
        "MuJoCo can't draw an image with OSMesa or EGL; run this line, then the same again:\n"
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
    # As vla_inference sets it, which is too late for a script that imports PyTorch before.
    text.append('  export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"')
    text += [f'  export MUJOCO_GL="${{MUJOCO_GL:-{gl}}}"', "fi"]
    partial = ENV_FILE.with_suffix(".part")
    partial.write_text("\n".join(text) + "\n")
    partial.replace(ENV_FILE)
