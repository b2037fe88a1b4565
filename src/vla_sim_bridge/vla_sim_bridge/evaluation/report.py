"""Writes the results folder (results.json, report.html) and the terminal table."""

from __future__ import annotations

import html
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from string import Template

from vla_inference.cli.output import plain
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.episode import WRONG
from vla_sim_bridge.evaluation.page import histogram, number, page, table_rows

RESULTS, REPORT = "results.json", "report.html"
SHIPPED = "share/vla_inference/models/stack-small"


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on; "-" if not installed."""
    found = {"python": platform.python_version(), "ros": os.environ.get("ROS_DISTRO", "-")}
    for name in ("robosuite", "mujoco", "numpy", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def write_json(path: Path, results: dict) -> Path:
    """Writes results atomically."""
    return write_whole(path, json.dumps(plain(results), indent=2, ensure_ascii=False) + "\n")


def command_to_repeat(results: dict) -> str:
    """The command line that runs the same episodes again."""
    words = ["./vla", "rollout"]
    words += ["--task", results["task"], "--episodes", str(results["episodes_asked"])]
    words += ["--seed", str(results["seed"]), "--horizon", str(results["horizon"])]
    if results.get("first_episode"):
        words += ["--first", str(results["first_episode"])]
    if results.get("only_episodes"):
        words += ["--only", ",".join(map(str, results["only_episodes"]))]
    if results["task"].startswith("libero_"):
        words += ["--ros"]  # without it, LIBERO's tasks run in processes
    if results.get("language", "train") != "train":
        words += ["--language", results["language"]]
    if results.get("lock_step", True):
        words += ["--execute-steps", str(results["execute_steps"])]
    else:
        words += ["--real-time"]
    # The model that ships is the default wherever the workspace lies.
    if results.get("checkpoint") and not results["checkpoint"].endswith(SHIPPED):
        words += ["--model", results["checkpoint"]]
    settings = results.get("image", {})
    if settings.get("camera", "agentview") != "agentview":
        words += ["--camera", settings["camera"]]
    for name in ("width", "height"):
        if settings.get(name, 224) != 224:
            words += [f"--{name}", str(settings[name])]
    return shlex.join(words)


# -- numbers as people read them --------------------------------------------------------------


def summary_rows(results: dict) -> list[tuple[str, str]]:
    """Names and values of the summary tables."""
    low, high = results["success_rate_wilson95"]
    counted, good = results["episodes"], results["successes"]
    latency = results["latency_ms"]
    # In real time a frame also waits for the one before it, which is not ROS's doing.
    beyond = ("ROS overhead per frame", results["ros_overhead_ms"])
    if not results.get("lock_step", True):
        beyond = ("frame to action", results["round_trip_ms"])
    rows = [
        ("task, seed", f"{results['task']}, seed {results['seed']}"),
        ("model", results["model"] or "-"),
        (
            "success (settled)",
            f"{good} of {counted}" + (f" = {100 * good / counted:.1f} %" if counted else ""),
        ),
        ("Wilson 95 %", f"{100 * low:.1f} to {100 * high:.1f} %" if counted else "-"),
        ("ever successful", f"{results['ever_successes']} of {counted}"),
        ("mean frames, successes", number(results["mean_frames_success"])),
        ("mean frames, all", number(results["mean_frames_all"] if counted else None)),
        (
            "inference latency",
            f"{number(latency['median'], 1, ' ms')} median, "
            f"{number(latency['p95'], 1, ' ms')} p95",
        ),
        (
            beyond[0],
            f"{number(beyond[1]['median'], 1, ' ms')} median, "
            f"{number(beyond[1]['p95'], 1, ' ms')} p95",
        ),
        ("action rate", number(results["action_steps_per_s"], 1, " steps/s")),
    ]
    if results.get("tasks"):
        rows.insert(2, _benchmark_row(results))
    if results.get("chunks_ignored"):
        rows.append(("chunks ignored", f"{results['chunks_ignored']}, for frames that had passed"))
    if results.get("language", "train") != "train":
        rows.insert(1, ("language", results["language"]))
    for wrong in WRONG:
        if count := results.get(wrong):
            at = next(i for i, row in enumerate(rows) if row[0] == "ever successful")
            rows.insert(at + 1, (wrong.replace("_", " "), f"{count} of {counted}"))
    if not results["complete"]:
        rows.insert(0, ("incomplete", results.get("ended", "") or "the run was stopped"))
    return rows


def _benchmark_row(results: dict) -> tuple[str, str]:
    """A benchmark counts an episode from the moment its goal is reached, settled or not."""
    good, counted = results["ever_successes"], results["episodes"]
    low, high = results["ever_success_wilson95"]
    share = f" = {100 * good / counted:.1f} %, 95 %: {100 * low:.1f} to {100 * high:.1f} %"
    return "success (the benchmark's rule)", f"{good} of {counted}{share if counted else ''}"


def plain_table(results: dict) -> str:
    rows = summary_rows(results)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


# -- HTML -------------------------------------------------------------------------------------

STYLE = """
.top { display: flex; gap: 2.5rem; flex-wrap: wrap; align-items: flex-start; }
.top > div { flex: 1 1 22rem; } video { width: 25rem; max-width: 100%; border-radius: 6px; }
table { width: 100%; } table.small { width: 22rem; } td, th { padding-right: .8rem; }
.bar { display: inline-block; height: .6rem; border-radius: 3px; background: #aaa;
  min-width: 2px; } .success { background: var(--good); } .timeout { background: var(--bad); }
WRONG { background: #c977d1; }
.track { width: 10rem; background: #f2f4f6; border-radius: 3px; line-height: 0; }
pre { background: #f6f8fa; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto;
  font-size: 13px; }
""".replace("WRONG", ", ".join(f".{name}" for name in WRONG))
BODY = Template("""<div class="top"><div><p class="big">$headline</p><p class="pale">$interval</p>
<table>$summary</table></div>$film</div>
$tasks<h2>Episodes</h2>
<table><tr><th class="n">#</th><th>outcome</th><th>frames of $horizon</th><th class="n"></th>
<th>instruction</th><th class="n">seconds</th></tr>$episodes</table>
<h2>Inference latency</h2>$histogram<table class="small">$stages</table>
<h2>Repeat it</h2><pre>$command</pre><p class="pale">$versions</p>""")


def write_html(folder: Path, results: dict, latencies: Sequence[float]) -> Path:
    """report.html: one page without external parts, except the video beside it."""
    escape = html.escape
    counted, good = results["episodes"], results["successes"]
    rows = summary_rows(results)
    low, high = results["success_rate_wilson95"]
    mode = "lock step" if results.get("lock_step", True) else "real time"
    warnings = [] if results["complete"] else [f"Incomplete: {results.get('ended') or 'stopped'}"]
    body = BODY.substitute(
        headline=f"{good} of {counted}"
        + (f" · {100 * good / counted:.0f} %" if counted else "")
        + ("" if results["complete"] else f" · {results['episodes_asked']} were requested"),
        interval=f"settled successes; Wilson 95 %: {100 * low:.1f} to {100 * high:.1f} %"
        if counted
        else "no episode was finished",
        summary=table_rows(
            (n, v)
            for n, v in rows
            if n not in ("task, seed", "Wilson 95 %", "success (settled)", "incomplete")
        ),
        film=_film(folder),
        horizon=results["horizon"],
        tasks=_tasks(results.get("tasks", ())),
        episodes="".join(_episode(e, results["horizon"], folder) for e in results["per_episode"]),
        histogram=histogram(latencies),
        stages=table_rows(
            (n, f"{number(v, 2, ' ms')} median") for n, v in results["stage_ms_median"].items()
        ),
        command=escape(results.get("command") or command_to_repeat(results)),
        versions=escape(" · ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())),
    )
    title = f"{results['task']}: closed-loop evaluation"
    subtitle = (
        f"{results['model'] or 'no model'} · seed {results['seed']} · {mode} · "
        f"{results.get('started', '')}"
    )
    return write_whole(folder / REPORT, page(title, subtitle, warnings, body, STYLE))


def _film(folder: Path) -> str:
    if not (folder / "episodes.mp4").exists():
        return ""
    poster = ' poster="poster.png"' if (folder / "poster.png").exists() else ""
    return f'<div><video src="episodes.mp4"{poster} controls muted loop></video></div>'


def _tasks(tasks: Sequence[dict]) -> str:
    """The tasks of a suite: reached (by the benchmark's rule), settled, sentence."""
    if not tasks:
        return ""
    rows = []
    for task in tasks:
        low, high = task["ever_success_wilson95"]
        rows.append(
            f'<tr><td class="n">{task["task"]}</td><td class="n">{task["ever_successes"]} of '
            f"{task['episodes']}</td><td>{100 * low:.0f} to {100 * high:.0f} %</td>"
            f'<td class="n">{task["successes"]}</td>'
            f"<td>{html.escape(task['instruction'])}</td></tr>"
        )
    head = "<th>task</th><th>reached</th><th>95 %</th><th>settled</th><th>instruction</th>"
    return f"<h2>Tasks</h2><table><tr>{head}</tr>{''.join(rows)}</table>"


def _episode(episode: dict, horizon: int, folder: Path) -> str:
    outcome = episode["outcome"]
    film = f"failures/episode_{episode['index']}.mp4"
    number = f"{episode['index']}"
    if outcome != "success" and (folder / film).exists():
        number = f'<a href="{film}">{number}</a>'
    note = " (touched)" if episode["ever_success"] and outcome != "success" else ""
    share = 100 * min(1.0, episode["frames"] / max(1, horizon))
    return (
        f'<tr><td class="n">{number}</td><td>{html.escape(outcome + note)}</td>'
        f'<td><div class="track"><span class="bar {html.escape(outcome)}" '
        f'style="width:{share:.0f}%"></span></div></td><td class="n">{episode["frames"]}</td>'
        f"<td>{html.escape(episode['instruction'])}</td>"
        f'<td class="n">{episode["seconds"]:.1f}</td></tr>'
    )
