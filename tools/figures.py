#!/usr/bin/env python3
"""Fills the docs' tables of measured figures from committed results; checks every stated figure.

    python tools/figures.py            # writes the tables
    python tools/figures.py --check    # exit status 1 where a page and its results differ

Three things are checked. Tables are those that the results give. Each figure in the prose of a
page (`CLAIMS`) is what its result gives. And no page states a figure that neither a table nor a
claim covers, so that a new one cannot be written without its result; sections marked as
development notes say themselves that no result is kept. Every result must say its command, commit,
device and versions (bench/common.py).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench" / "closed_loop"))
import executed_steps
import roofline
import study_page
import task_rates_table
from common import RESULTS, ROOT, read
from pages import fill_tables

README = ROOT / "README.md"
CARD = "models/stack-small/evaluation"
ROVER_CARD = "models/rover-small/evaluation"
SCRIPTS = ("bench", "test/robustness", "tools")
SUCCESS = "python bench/closed_loop/success.py"
SAME = "the same"
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a table: what was measured, the figure that the results give, the command."""

    what: str
    figure: Callable[..., str]
    results: tuple[str, ...]
    command: str = ""  # default: that of the first result

    def line(self) -> str:
        found = [read(name) for name in self.results]
        command = self.command or as_of_now(found[0]["provenance"]["command"])
        shown = command if command == SAME else f"`{command}`"
        return f"| {self.what} | {self.figure(*found)} | {shown} |"


def as_of_now(command: str) -> str:
    """A kept result's command, with its script where it lies today."""
    old = re.search(r"\S+\.py", command)
    if old is None or (ROOT / old[0]).exists():
        return command
    found = [p for folder in SCRIPTS for p in (ROOT / folder).rglob(Path(old[0]).name)]
    if len(found) != 1:
        raise SystemExit(f"{old[0]} of a result is in {len(found)} places of {SCRIPTS}")
    return command.replace(old[0], str(found[0].relative_to(ROOT)))


@dataclass(frozen=True)
class Claim:
    """A sentence or part of one that must stand in a page, made of what the results give."""

    page: str
    text: Callable[..., str]
    results: tuple[str, ...]


# -- how figures are written ------------------------------------------------------------------


def success(r: Result) -> str:
    """97 % of 100 (91.5 to 99.0)"""
    low, high = (100 * v for v in r["success_rate_wilson95"])
    return f"{100 * r['success_rate']:.4g} % of {r['episodes']} ({low:.1f} to {high:.1f})"


def point(report: Result, **wanted: Any) -> Result:
    """The row of a report whose values are these."""
    fits = [r for r in report["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    if len(fits) != 1:
        raise SystemExit(f"{len(fits)} rows of {report['provenance']['command']} have {wanted}")
    return fits[0]


def fastest(report: Result, **wanted: Any) -> Result:
    rows = [r for r in report["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    return max((r for r in rows if "samples_per_s" in r), key=lambda r: r["samples_per_s"])


def pooled(name: str, *reports: Result) -> str:
    won = sum(r["formats"][name]["successes"] for r in reports)
    return f"{100 * won / sum(r['episodes'] for r in reports):.1f}"


def finetune(r: Result) -> str:
    ours, theirs = point(r, point="lora", batch=16), fastest(r, point="rival", compile=True)
    plain = point(r, point="rival", batch=16, compile=False)
    compiled = point(r, point="rival", batch=16, compile=True)
    best = fastest(r, point="lora")
    return (
        f"{best['samples_per_s']:.1f} samples/s at batch {best['batch']}, "
        f"{100 * best['mfu']:.0f} % model-FLOPs utilisation. Against peft at batch 16: "
        f"{ours['samples_per_s'] / plain['samples_per_s']:.2f} times its plain loop, "
        f"{ours['samples_per_s'] / compiled['samples_per_s']:.2f} times one whose blocks are "
        f"compiled; best against best (compiled, batch {theirs['batch']}) "
        f"{best['samples_per_s'] / theirs['samples_per_s']:.2f} times"
    )


def two_gpus(r: Result) -> str:
    one, two = (point(r, point="lora", gpus=n)["samples_per_s"] for n in (1, 2))
    full = point(r, point="full", gpus=2)["samples_per_s"]
    return f"{two:.0f} samples/s, {two / one:.1f} times one GPU; {full:.0f} samples/s"


def studio_faults(r: Result) -> str:
    found = r["motion after the fault"].values()
    times = [ms for fault in found for ms in fault["ms"]]
    within = sum(ms <= 300 for ms in times)
    most = f"at most {max(times):.0f} ms"
    return f"motion ended within 300 ms {within} of {len(times)} times, {most}"


def studio_images(r: Result) -> str:
    with_page, aside = list(r["rate_of_that_without"].values())
    return (
        f"{r['behind_ms']['median']:.0f} ms median, 95th percentile {r['behind_ms']['p95']:.0f} "
        f"ms; {100 * with_page:.0f} and {100 * aside:.0f} % of its rate without"
    )


def studio_newcomer(r: Result) -> str:
    seconds = r["seconds"]
    return (
        f"{seconds['the first success'] / 60:.1f} minutes on two cores; the page can be opened "
        f"after {seconds['the page can be opened'] / 60:.1f}"
    )


def studio_viewers(r: Result) -> str:
    memory = r["memory_mb"]
    return (
        f"{r['rate_with_viewers']:.2f} of the graph's rate without them; the studio's memory "
        f"{memory[0]:.0f} MB, after {r['minutes']:.0f} minutes {memory[-1]:.0f} MB"
    )


def speech(r: Result) -> str:
    near, far = (r[f"sentences, {snr} dB"] for snr in (20, 10))
    stop, noise, prose = r["stop"], r["noise alone"], r["prose, 20 dB"]
    alike = r["other words alone, 20 dB"]
    return (
        f"{near['right']} of {near['of']} spoken sentences are understood with noise 20 dB below "
        f"the voice and {far['right']} of {far['of']} with 10 dB, {near['another']} and "
        f'{far["another"]} are taken for another; "stop" is found {stop["stops"]} of '
        f"{stop['of']} times; in {noise['minutes']} minutes of noise {noise['heard']} words are "
        f"heard, in {prose['minutes']:.0f} minutes of prose {prose['stops']} stops; of words "
        f'alone that sound alike ("step", "shop") {alike["stops"]} of {alike["of"]} stop the robot'
    )


def faults(r: Result) -> str:
    rows = r["rows"]
    times, good = sum(f["times"] for f in rows), sum(f["recovered"] for f in rows)
    worst = max(f["beyond_worst_ms"] for f in rows if f.get("beyond_worst_ms") is not None)
    return (
        f"{good} of {times} safe and recovered, at most {worst:.0f} ms after the limit of the "
        "responsible watchdog"
    )


def random_parts(r: Result) -> str:
    wrong = Counter(r["arms"]["wrong"]) + Counter(r["base"]["wrong"])
    unseen = wrong.pop("motion_unseen", 0)
    return (
        f"{r['arms']['steps']:,} and {r['base']['steps']:,} command periods: "
        f"{sum(wrong.values())} outside limits or after a stop, {unseen} in motion on a joint "
        "state that was out of date (an arm led out by false joint states, by no more than they "
        "are false, is excused where nobody says how fast its joints can be)"
    )


def hand_overs(r: Result) -> str:
    robots = [r[name] for name in ("eef", "arms", "base")]
    wrong = sum(robot["wrong_in_all"] for robot in robots)
    periods = sum(robot["periods"] for robot in robots)
    enabled = ", ".join(f"{robot['while_enabled']:,}" for robot in robots)
    return (
        f"{enabled} hand-overs while enabled: {wrong} times outside limits, without a command in "
        f"a period, or by another than was told, in {periods:,} periods"
    )


def recorded_hand_overs(r: Result) -> str:
    wrong = Counter(r["wrong"])
    who, what = wrong.pop("who_acted", 0), wrong.total()
    return (
        f"{r['hand_overs']:,} hand-overs in {r['episodes']:,} episodes: of {r['steps']:,} steps "
        f"{who} name the wrong actor, {what} have a wrong action or are missing"
    )


def random_chunks(r: Result) -> str:
    """What was wrong, by kind, if anything was."""
    outside = r["wrong"].get("robot_outside", 0)
    others = r["wrong_in_all"] - outside
    where = f"{outside} periods with the robot outside its workspace"
    if outside:
        where += f" ({1e3 * r['farthest']:.1f} mm at most)"
    joints, periods = sum(r["joints"]["wrong"].values()), r["joints"]["ticks"]
    ik = f"of {periods:,} periods of the IK path {joints} with a joint too fast"
    if joints:
        ik += f" ({100 * (r['joints']['fastest'] - 1):.0f} % at most)"
    return (
        f"{r['chunks']:,} chunks: {others} commands outside limits or after a stop, {where}; {ik}"
    )


def times(report: Result, path: str, other: str = "reference") -> str:
    paths = report["paths"]
    return f"{paths[other]['median_ms'] / paths[path]['median_ms']:.1f}"


def latencies(r: Result) -> str:
    p = r["paths"]
    names = ("torch", "torch:int8", "torch:fp8", "torch:int4")
    ms = " / ".join(f"{p[n]['median_ms']:.1f}" for n in names)
    faster = ", ".join(times(r, n) for n in names)
    return f"{ms} ms an action: {faster} times the reference in that run"


def wire(r: Result) -> str:
    ours, theirs = (point(r, client=c, images="arrays") for c in ("ours", "openpi-client"))
    if not r["real_time"]:
        raise SystemExit("wire.json: measure it by chrt -f 5, on a machine that does other work")
    return (
        f"{ours['median_ms']:.1f} ms median, {ours['p99_ms']:.1f} ms 99th percentile; by the "
        f"unchanged openpi-client {theirs['median_ms']:.1f} and {theirs['p99_ms']:.1f} ms"
    )


def beside_clients(r: Result) -> str:
    alone, beside = r["rows"][0], r["rows"][-1]
    waits = " / ".join(
        f"{row['wait_ms']['median']:.0f} ms to the chunk, p95 {row['wait_ms']['p95']:.0f} ms"
        for row in (alone, beside)
    )
    return f"{waits}; {beside['client_answers_per_s']:.0f} answers a second to the clients"


def hostile(r: Result) -> str:
    good = r["good_client"]
    return (
        f"{good['answers']:,} answers to a good client, {good['failed']} failed or wrong; "
        f"{r['attacks']['connections']:,} hostile connections, "
        f"{r['mb_growth']:.0f} MB growth in {r['minutes']:.0f} min, nothing executed"
    )


def clients(r: Result) -> str:
    rows = [
        [point(r["formats"][name], clients=n) for name in ("bf16", "int8")] for n in (1, 4, 16)
    ]
    one, _, most = rows
    rates = "; ".join(
        " / ".join(f"{row['answers_per_s']:.0f}" for row in each) + f" answers/s of {n}"
        for n, each in zip((1, 4, 16), rows, strict=True)
    )
    times_one = " / ".join(f"{row['times_one']:.1f}" for row in most)
    late = (" / ".join(f"{row['p95_ms']:.0f}" for row in each) for each in (most, one))
    return "{}: {} times. 95th percentile {} ms, of one {} ms".format(rates, times_one, *late)


# -- the tables of docs/results.md, and README's choice of them ---------------------------------

LOOP = (
    Row(
        "success, `Stack_D0`",
        success,
        (f"{CARD}/Stack_D0_seed7.json",),
        f"{SUCCESS} --ros Stack_D0:100",
    ),
    Row(
        "success, `Stack_D2`: whole table, random colours and sentences",
        lambda r: f"{success(r)}, {r['mean_frames_all']:.1f} frames a run",
        (f"{CARD}/Stack_D2_seed7.json",),
        f"{SUCCESS} --ros Stack_D2:100",
    ),
    Row(
        "image to action chunk (8 steps)",
        lambda r: f"{r['latency_ms']['median']:.0f} ms median",
        (f"{CARD}/Stack_D2_seed7.json",),
        SAME,
    ),
    Row(
        "closed loop, simulation included",
        lambda r: f"{r['action_steps_per_s']:.0f} action steps/s",
        (f"{CARD}/Stack_D2_seed7.json",),
        SAME,
    ),
    Row(
        "overhead of ROS per frame",
        lambda r: f"{r['ros_overhead_ms']['median']:.1f} ms median",
        (f"{CARD}/Stack_D2_seed7.json",),
        SAME,
    ),
    Row(
        "the same model through `vla serve`, `Stack_D0`, against in process",
        lambda r: f"{r['equal_episodes']} of {r['episodes']} episodes equal",
        ("served.json",),
    ),
    Row(
        "what `vla serve` adds to an answer, two images of 224 pixels, loopback",
        wire,
        ("wire.json",),
        "chrt -f 5 python bench/serving/wire.py",
    ),
    Row(
        "success, `Stack_L`: two blocks of one size, only the sentence says which goes on which",
        lambda r: f"{success(r)}, wrong order {100 * r['wrong_order'] / r['episodes']:.1f} %",
        (f"{CARD}/Stack_L_train_seed7.json",),
        f"{SUCCESS} Stack_L:200",
    ),
    Row(
        "the same, with sentences of a development set that training never uses",
        success,
        (f"{CARD}/Stack_L_held-out_seed7.json",),
        f"{SUCCESS} Stack_L:200:held-out",
    ),
    Row(
        "the same, with sentences as people type them",
        success,
        (f"{CARD}/Stack_L_free_seed7.json",),
        f"{SUCCESS} Stack_L:120:free",
    ),
    Row(
        "success, `Lift_D1`, the same weights",
        success,
        (f"{CARD}/Lift_D1_train_seed7.json",),
        f"{SUCCESS} Lift_D1:100",
    ),
    Row(
        "success, `Stack_D2`, with 32, 8 and 4 bit weights, the same 600 episodes",
        lambda *r: ", ".join(pooled(n, *r) for n in ("fp32", "int8", "int4-g32")) + " %",
        ("quantized_rollouts.json", "quantized_rollouts_seed8.json"),
        "python bench/closed_loop/quantized_rollouts.py`, `--episodes 400 --seed 8`, "
        "then both with `--pool",
    ),
)
ROBOT = (
    Row(
        "success on `Stack_D0` by twists, by target poses; limits: those of the simulated "
        "arm's controller (1.8 m/s), and a workspace",
        lambda a, b: (
            f"{a['successes']} of {a['episodes']}, {b['successes']} of {b['episodes']}; the "
            f"workspace changed {a['robot']['clips'].get('workspace', 0):,} and "
            f"{b['robot']['clips'].get('workspace', 0):,} commands"
        ),
        ("robot_twist.json", "robot_pose.json"),
        "python bench/closed_loop/robot_paths.py --path twist --episodes 100",
    ),
    Row(
        "by twists at the default limits of a real robot (0.25 m/s), chunks stretched four times",
        lambda r: (
            f"{r['successes']} of {r['episodes']}, {r['mean_frames_success']:.0f} frames a success"
        ),
        ("robot_twist_default_limits.json",),
        "python bench/closed_loop/robot_paths.py --path twist --limits default --stretch 4 "
        "--episodes 50",
    ),
    Row(
        "the same by joint positions, by joint velocities (ros2_control's forward controllers)",
        lambda a, b: f"{a['successes']} of {a['episodes']}, {b['successes']} of {b['episodes']}",
        ("robot_joint_positions.json", "robot_joint_velocities.json"),
        "python bench/closed_loop/robot_paths.py --path joint_positions --episodes 100",
    ),
    Row(
        "one hour in real time at 20 Hz, with jobs and model changes",
        lambda r: (
            f"{100 * r['missed_share']:.2f} % of {r['command_periods']:,} command periods "
            f"missed, {sum(r['stops'].values()) or 'no'} stop, "
            f"{max(p['mb_growth'] for p in r['processes'].values()):.0f} MB growth; "
            f"commit {r['provenance']['commit'].split(',')[0]}"
        ),
        ("soak.json",),
    ),
    Row(
        "injected faults, 20 times each",
        faults,
        ("faults.json",),
        "python test/robustness/faults.py --times 20",
    ),
    Row(
        "the studio's button let go, its tab closed, its browser killed, its socket dropped, 20 "
        "times each",
        studio_faults,
        ("studio_faults.json",),
    ),
    Row(
        "the same while a person moves the robot from the page, and the key let go, 20 times each",
        studio_faults,
        ("studio_faults_by_hand.json",),
    ),
    Row(
        "an image in the studio's page behind the simulation's; the closed loop with a page open "
        "on the same two cores, and with its browser given idle time alone",
        studio_images,
        ("studio_images.json",),
    ),
    Row(
        "`git clone`, `make studio`, and a block stacked by a sentence typed into the page",
        studio_newcomer,
        ("studio_newcomer.json",),
    ),
    Row("eight viewers beside the studio's operator", studio_viewers, ("studio_viewers.json",)),
    Row(
        "random chunks, delays, faults, and a robot that misreports its pose and joints",
        random_chunks,
        ("safety_fuzz.json",),
    ),
    Row(
        "the same for two arms of joints with grippers, and for a mobile base",
        random_parts,
        ("parts_fuzz.json",),
    ),
    Row(
        "random hand-overs between model and person, silences and broken chunks: an end effector, "
        "two arms by joints, a base",
        hand_overs,
        ("takeover_fuzz.json",),
    ),
    Row(
        "hand-overs at any time, told late, as bags keep them",
        recorded_hand_overs,
        ("recording_fuzz.json",),
    ),
    Row("hostile clients against `vla serve`", hostile, ("hostile_clients.json",)),
    Row(
        "images at 5 Hz to a node, alone / while 4 clients ask its `serve_port` without a pause",
        beside_clients,
        ("serving_node.json",),
    ),
)
GPU = (
    Row(
        "reference path: transformers' `generate`, bf16",
        lambda r: f"{r['paths']['reference']['median_ms']:.0f} ms an action",
        ("speed_h200.json",),
    ),
    Row(
        "`engine: torch`, bf16 / int8 / FP8 / int4 weights",
        latencies,
        ("speed_h200.json",),
        SAME,
    ),
    Row(
        "OpenVLA-OFT, a chunk of 8 actions, bf16 / FP8",
        lambda r: (
            f"{r['paths']['torch']['median_ms']:.1f} / "
            f"{r['paths']['torch:fp8']['median_ms']:.1f} ms"
        ),
        ("oft_h200.json",),
    ),
    Row(
        "`vla serve`, `engine: torch`, bf16 / int8, clients that wait for each answer",
        clients,
        ("clients_h200.json",),
    ),
    Row(
        "bf16 tokens against float32, 200 observations",
        lambda r: (
            f"{r['tokens']['all_equal']} of {r['tokens']['observations']} answers equal; "
            f"all {r['tokens']['clear_and_equal']} whose tokens are no near-tie "
            f"(gap > {r['tokens']['gap_threshold']})"
        ),
        ("openvla_7b_h200.json",),
    ),
    Row("LoRA r=32, bf16", finetune, ("finetune_h200.json",)),
    Row(
        "peak memory of LoRA (smallest settings); of QLoRA",
        lambda r: (
            f"{point(r, point='lora-memory', batch=1)['peak_gb']:.1f} GB; "
            f"{point(r, point='qlora', batch=1)['peak_gb']:.1f} GB"
        ),
        ("finetune_memory_h200.json",),
    ),
    Row(
        "two GPUs: LoRA, batch 32 each; all weights (FSDP2)",
        two_gpus,
        ("finetune_scaling_h200.json",),
        "torchrun --nproc-per-node 2 bench/training/finetune_scaling.py --batch 32`, "
        "with `--rank 32",
    ),
    Row(
        "generated demonstrations, 224 x 224, one GPU and 16 cores",
        lambda r: (
            f"{r['episodes'] / r['seconds_in_all']:.0f} episodes/s including start-up, "
            f"{1 / r['seconds_per_episode_steady']:.0f} afterwards"
        ),
        ("generation_h200.json",),
    ),
)
ROVER = (
    *(
        Row(
            what,
            lambda r: (
                f"{success(r)}; wrong object {100 * r['wrong_object'] / r['episodes']:g} %, "
                f"collision {100 * r['collision'] / r['episodes']:g} %"
            ),
            (f"{ROVER_CARD}/{name}_seed7.json",),
        )
        for what, name in (
            ("`Rover_D0`: three objects ahead", "Rover_D0_train"),
            ("the same, sentences of templates that training never uses", "Rover_D0_held-out"),
            ("`Rover_D1`: the whole arena, any heading", "Rover_D1_train"),
        )
    ),
    Row(
        "`Rover_D0` through the command node and `cmd_vel`, in lock step / in real time at 20 Hz",
        lambda a, b: (
            f"{a['successes']} of {a['episodes']} / {b['successes']} of {b['episodes']}; periods "
            f"without a fresh command {a['robot']['gaps']} of {sum(a['per_episode_frames']):,} / "
            f"{b['robot']['gaps']} of {sum(b['per_episode_frames']):,}, those after a stop by "
            f"lidar apart ({a['robot']['stops'].get('obstacle', 0)} / "
            f"{b['robot']['stops'].get('obstacle', 0)} stops)"
        ),
        ("rover_lock_step.json", "rover_real_time.json"),
        "python bench/closed_loop/robot_paths.py --path base --episodes 50 --real-time",
    ),
)
TABLES = {
    "figures: loop": LOOP,
    "figures: robot": ROBOT,
    "figures: rover": ROVER,
    "figures: gpu": GPU,
}
GLANCE = {  # rows, and what they are called away from their own tables
    LOOP[1]: "success of the shipped model, `Stack_D2`: whole table, random colours and sentences",
    LOOP[2]: "image to action chunk (8 steps), 2 CPU cores",
    LOOP[7]: LOOP[7].what,
    ROVER[0]: "success of the shipped rover model, `Rover_D0`: to the one of three objects named",
    **{row: row.what for row in (*ROBOT[4:6], ROBOT[7])},
    GPU[1]: "OpenVLA-7B on one H200, `engine: torch`, bf16 / int8 / FP8 / int4 weights",
    GPU[2]: "OpenVLA-OFT 7B there, a chunk of 8 actions, bf16 / FP8",
}
HEAD = ["| what | figure | command |", "|---|---|---|"]


def tables() -> dict[str, list[str]]:
    return {name: table(rows) for name, rows in TABLES.items()}


def table(rows: tuple[Row, ...]) -> list[str]:
    return [*HEAD, *(row.line() for row in rows)]


def glance() -> list[str]:
    """A few rows, each with a command of its own."""
    chosen = []
    for row, what in GLANCE.items():
        rows = next(rows for rows in TABLES.values() if row in rows)
        above = [r.line().split(" | ")[-1] for r in rows[: rows.index(row)]]
        command = next((c for c in reversed(above) if c != f"{SAME} |"), "")
        line = replace(row, what=what).line()
        chosen.append(line.replace(f"| {SAME} |", f"| {command}"))
    return [*HEAD, *chosen]


def batches() -> list[str]:
    """Milliseconds of one pass of the CUDA engine by the number of observations."""
    formats = read("clients_h200.json")["formats"]
    names = ("bf16", "int8")
    lines = ["| observations | " + " | ".join(f"{n}: vision, prefill, decode; all" for n in names)]
    lines = [f"{lines[0]} |", "|---|---|---|"]
    for both in zip(*(formats[name]["passes"] for name in names), strict=True):
        cells = [str(both[0]["batch"])]
        for found in both:
            stages = (found["stages_ms"][k] for k in ("vision", "prefill", "decode", "total"))
            cells.append("{:.1f}, {:.1f}, {:.1f}; {:.1f} ms".format(*stages))
        lines.append(f"| {' | '.join(cells)} |")
    same = (formats[name]["batch_against_single"]["tokens_equal"] for name in names)
    shares = " and ".join(f"{100 * share:.1f} %" for share in same)
    note = f"Of batches of 16, {shares} of the tokens are those of each observation alone."
    return [*lines, "", note]


# -- figures in prose -------------------------------------------------------------------------

CARD_PAGE = "models/stack-small/README.md"
BITS = ("quantized_rollouts.json", "quantized_rollouts_seed8.json")
PLAYED = {  # result -> sentences, command
    "Stack_D0_seed7": ("its one", f"{SUCCESS} --ros Stack_D0:100"),
    "Stack_D2_seed7": ("trained on", f"{SUCCESS} --ros Stack_D2:100"),
    "Stack_L_train_seed7": ("trained on", f"{SUCCESS} Stack_L:200"),
    "Stack_L_held-out_seed7": (
        "development set",
        f"{SUCCESS} Stack_L:200:held-out",
    ),
    "Stack_L_free_seed7": (
        "free: 60 sentences",
        f"{SUCCESS} Stack_L:120:free",
    ),
    "Lift_D1_train_seed7": ("trained on", f"{SUCCESS} Lift_D1:100"),
}


FLOW = {"smolvla": "SmolVLA", "pi0": "pi0", "pi05": "pi0.5"}
FLOW_PATHS = {"plain": "`plain`", "engine": "`torch`", "compiled": "`plain`, torch.compile"}


def flow() -> list[str]:
    """A row for each model, number of cameras and path."""
    lines = [
        "| model | cameras | path | median | p95 | reading, steps | error, 1e-3 |",
        "|---|---|---|---|---|---|---|",
    ]
    report = read("flow_h200.json")
    for name, called in FLOW.items():
        for cameras, rivals in report.get(name, {"cameras": {}})["cameras"].items():
            for path, r in rivals.items():
                if not isinstance(r, dict) or "median_ms" not in r:
                    continue
                stages = f"{r['read_ms']:.1f}, {r['steps_ms']:.1f}" if "read_ms" in r else ""
                lines.append(
                    f"| {called} | {cameras} | {FLOW_PATHS.get(path, f'`torch:{path}`')} "
                    f"| {r['median_ms']:.1f} ms | {r['p95_ms']:.1f} ms | {stages} "
                    f"| {1e3 * r['error']:.1f} |"
                )
    by = report["provenance"]
    return [f"{by['device']}, `{by['command']}`.", "", *lines]


def card() -> list[str]:
    names = ("task", "sentences", "success", "95 %", "wrong order", "mean frames, all", "command")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, (sentences, command) in PLAYED.items():
        r = read(f"{CARD}/{name}.json")
        low, high = (100 * v for v in r["success_rate_wilson95"])
        order = str(r["wrong_order"]) if "Stack_L" in name else ""
        lines.append(
            f"| {'_'.join(name.split('_')[:2])} | {sentences} | "
            f"{r['successes']} of {r['episodes']} | "
            f"{low:.1f} to {high:.1f} % | {order} | {r['mean_frames_all']:.1f} | `{command}` |"
        )
    return lines


def fewer_bits() -> list[str]:
    lines = ["| episodes | fp32 | int8 | int4-g32 |", "|---|---|---|---|"]
    for report in map(read, BITS):
        cells = []
        for name in ("fp32", "int8", "int4-g32"):
            found = report["formats"][name]
            cells.append(str(found["successes"]))
            if "minus_fp32" in found:
                change = {k: 100 * v for k, v in found["minus_fp32"].items()}
                cells[-1] += " ({difference:+.1f}; {low:.1f} to {high:.1f})".format(**change)
        lines.append(
            f"| {report['episodes']} of seed {report['seed']} | " + " | ".join(cells) + " |"
        )
    return lines


def _won(name: str, reports: tuple[Result, ...]) -> int:
    return sum(r["formats"][name]["successes"] for r in reports)


CLAIMS = (
    Claim(
        "README.md",
        lambda r: f"Python 3.10 to 3.12, {r['all_mb'] / 1000:.1f} GB of disk",
        ("setup.json",),
    ),
    Claim(
        "docs/robot.md",
        lambda r: f"`make setup` once ({r['all_mb'] / 1000:.1f} GB of disk)",
        ("setup.json",),
    ),
    Claim(
        "docs/tutorial.md",
        lambda r: (
            "after 8 minutes of training on two cores it stacked in "
            f"{r['successes']['Stack_D0 by first']} episodes, before in "
            f"{r['successes']['Stack_D0 by untrained']}. All commands of sections 1, 4 and 5 took "
            f"{r['minutes']:.0f} minutes there"
        ),
        ("tutorial.json",),
    ),
    Claim(
        "docs/how-to.md",
        lambda r: (
            f"{r['beside them']['torch first']['over_best']:.2f} times as long beside a busy "
            f"process ({r['beside them']['as installed']['over_best']:.2f} with the settings"
        ),
        ("busy_neighbour.json",),
    ),
    Claim(
        CARD_PAGE,
        lambda *r: f"Of {sum(x['episodes'] for x in r)} episodes",
        BITS,
    ),
    Claim(
        CARD_PAGE,
        lambda *r: (
            f"it does {_won('fp32', r)}, at int8 {_won('int8', r)}, at int4 {_won('int4-g32', r)}"
        ),
        BITS,
    ),
    Claim("docs/how-to.md", speech, ("studio_speech.json",)),
    Claim(
        "docs/how-to.md",
        lambda r: (
            "the float16 graph of the full-size vision encoders in ONNX Runtime on a CPU: "
            f"{100 * r['relative_error_at_export']:.2f} % off PyTorch in float32, "
            f"{r['onnx']['equal_tokens']} action tokens equal"
        ),
        ("vision_onnx.json",),
    ),
    Claim(
        "docs/how-to.md",
        lambda r: (
            f"{r['tokens']['equal_tokens']} tokens those of the plain model on the same "
            f"weights, {r['tvm_ms']['answer']:.0f} ms for what the `torch` engine does in "
            f"{r['torch_engine_ms']['answer']:.0f}, because TVM's schedules take "
            f"{r['tvm_ms']['prefill']:.0f} ms for the prefill"
        ),
        ("tvm_int4_h200.json",),
    ),
    Claim(
        "docs/explanation/speed.md",
        lambda r: (
            f"In float32 an answer takes {r['lerobot']['cpu_median_ms']} ms of it by LeRobot and "
            f"{r['torch']['cpu_median_ms']} ms by the `torch` engine, "
            f"{r['torch']['lerobot_over_it_cpu']:.2f} times less "
            f"({r['torch']['lerobot_over_it_wall']:.2f} by the clock). With `dtype: bfloat16` it "
            f"is {r['torch bfloat16']['lerobot_over_it_cpu']:.2f} times less "
            f"({r['torch bfloat16']['lerobot_over_it_wall']:.2f} by the clock), and actions are "
            f"{r['torch bfloat16']['error']} off"
        ),
        ("act_cpu.json",),
    ),
)
# Figures that we did not measure, by page: settings, formats, data sheets, published figures.
NOT_MEASURED: dict[str, tuple[str, ...]] = {
    "README.md": ("In brackets: 95 % intervals",),
    "docs/results.md": ("In brackets: 95 % intervals",),
    "docs/explanation/speed.md": (
        "(Orin: 204.8 GB/s",
        "Thor: 273 GB/s",
        "with their 95 % interval",
        "The goal was 2 times",
    ),
    "docs/explanation/study.md": (
        "23 % of its trials, on 1,000 for 6 epochs in 48 %, on 2,500 for 4 epochs in 84 %",
    ),
    "docs/how-to.md": ("just below 100 % clipped",),
    "docs/operations.md": ("all of these faults but the last, each 20 times",),
    "docs/reference.md": (
        "at most 5 times a second",
        "shards of 200 MB",
        "10 times the median",
        "crops of 90 % of",
    ),
    "docs/tutorial.md": ("with its 95 % interval",),
    "models/rover-small/README.md": ("2.5 MB in bfloat16",),
    CARD_PAGE: (
        "17.4 MB in bfloat16",
        "6 of 60 are among those",
        "(200 of seed 7",
        "at 38 % of its schedule",
    ),
}


# -- the check --------------------------------------------------------------------------------

OPTIONS = ROOT / "docs" / "options.md"  # written from the code
PAGES = ("README.md", "docs/**/*.md", "models/*/README.md")
# What reads as a measured figure: a number with a share, a time, a size or a rate.
MEASURED = re.compile(
    r"(?<![\w.`-])\d[\d,]*(?:\.\d+)?\s?"
    r"(?:%|ms\b|us\b|GB\b|MB\b|(?:samples|steps|frames|tokens|episodes|answers)/s\b|times\b|"
    r"points\b|of \d+\b)"
)
TABLE = re.compile(r"<!-- (?!notes)([\w: -]+) -->\n.*?<!-- /\1 -->", re.DOTALL)
NOTES = re.compile(
    r"<!-- notes -->\n#+ [^\n]*\nDevelopment notes: no result .*?<!-- /notes -->", re.DOTALL
)
CODE = re.compile(r"```.*?```", re.DOTALL)


def plain(text: str) -> str:
    return " ".join(text.split())


def wrong() -> list[str]:
    """What a page says that no committed result does, a line each."""
    found = [f"{name}: no provenance; measure it again with --output" for name in unproven()]
    for page, made in generated().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        if fill_tables(text, made) != text:
            found.append(f"{page}: a table is not what its results give; make it again")
    for path in sorted({p for pattern in PAGES for p in ROOT.glob(pattern)} - {OPTIONS}):
        name = str(path.relative_to(ROOT))
        text = path.read_text(encoding="utf-8")
        for without in (TABLE, NOTES, CODE):
            text = without.sub("", text)
        text = plain(text)
        claims = [plain(c.text(*map(read, c.results))) for c in CLAIMS if c.page == name]
        for said in [*claims, *NOT_MEASURED.get(name, ())]:
            if said not in text:
                found.append(f"{name}: does not say: {said}")
            text = text.replace(said, " ")
        for figure in MEASURED.finditer(text):
            around = text[max(0, figure.start() - 50) : figure.end() + 20]
            found.append(f"{name}: {figure.group()!r} has no result: ...{around}...")
    return found


# of Goal, those that place an object and need nothing opened: a closed drawer (3) is refused since
# that run, and on the rack (9) the bottle reaches the goal and does not stay
PLACED = {"libero_goal": (1, 2, 4, 6, 8)}


def libero_expert() -> list[str]:
    """A row per suite: attempts that succeeded, settled and at any moment, from all results."""
    lines = [
        "| suite | tasks | settled | at any moment | command, commit |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("libero_expert_*.json")):
        result = read(path.name)
        by, suites = result["provenance"], result["suites"]
        for suite, found in suites.items():
            kept = [r for r in found["tasks"] if r["task"] in PLACED.get(suite, range(90))]
            of = sum(r["attempts"] for r in kept)
            good, ever = (sum(r[n] for r in kept) for n in ("successes", "ever"))
            tasks = ", ".join(str(r["task"]) for r in kept)
            command = f"`{by['command']}`, {by['commit'][:7]}"
            lines.append(f"| {suite} | {tasks} | {good} of {of} | {ever} of {of} | {command} |")
    return lines


def estimate() -> list[str]:
    """A row per set of held-out episodes: verdicts, false ones, and looks on the way."""
    r = read("estimate.json")
    lines = [
        "| episodes | verdict as the simulator's | failures called done | looks called done that "
        "are not | progress off by |",
        "|---|---|---|---|---|",
    ]

    def cell(found: Result) -> str:
        low, high = (100 * v for v in found["wilson95"])
        return f"{found['count']} of {found['of']} ({low:.1f} to {high:.1f} %)"

    def row(name: str, found: Result) -> str:
        parts = ("agreement", "false_done_of_failures", "looks_false_done")
        off = found["progress_error"]
        told = [*(cell(found[part]) for part in parts), "" if off is None else f"{off:.2f}"]
        return f"| {name} | {' | '.join(told)} |"

    held_out = r["held_out_task"]
    lines += [
        row(f"`{t}`, other seeds", found) for t, found in r["tasks"].items() if t != held_out
    ]
    lines.append(row("both together", r["held_out_seeds"]))
    lines.append(row(f"`{held_out}`, never trained on", r["tasks"][held_out]))
    lines.append(row("the big block put on the small one, which no rule knows", r["unforeseen"]))
    note = (
        f"Trained on {r['training']['episodes']} episodes of `Stack_D2` and `Stack_L`; in "
        f"brackets: 95 % intervals. `{r['provenance']['command']}`; how the episodes are drawn "
        "stands at its beginning. That the last row's are judged apart, and choose no threshold, "
        "was decided after a first look at them."
    )
    return [*lines, "", note]


def generated() -> dict[str, dict[str, list[str]]]:
    """Page -> the tables that results give it."""
    study = read("study.json")["rows"]
    return {
        "README.md": {"figures: glance": glance()},
        "docs/results.md": tables(),
        "docs/explanation/speed.md": {
            **roofline.tables(),
            "fewer bits": fewer_bits(),
            "batches": batches(),
            "flow": flow(),
        },
        CARD_PAGE: {"card": card()},
        "models/rover-small/README.md": {"figures: rover": table(ROVER)},
        "docs/explanation/study.md": study_page.tables(study),
        "docs/explanation/executed_steps.md": {
            "steps": executed_steps.table(read("executed_steps.json"))
        },
        "docs/how-to.md": {"libero expert": libero_expert(), "figures: estimate": estimate()},
        "docs/reference.md": {
            "task rates": task_rates_table.table(read("task_rates.json")["rows"])
        },
    }


def unproven() -> list[str]:
    needed = {"command", "commit", "device", "versions"}
    folders = (RESULTS, ROOT / CARD, ROOT / ROVER_CARD)
    kept = [path for folder in folders for path in folder.glob("*.json")]
    names = sorted(str(path.relative_to(ROOT)) for path in kept)
    return [name for name in names if not needed <= set(read(name).get("provenance", ()))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    if not args.check:
        for page, made in generated().items():
            text = (ROOT / page).read_text(encoding="utf-8")
            (ROOT / page).write_text(fill_tables(text, made), encoding="utf-8")
    found = wrong()
    print("\n".join(found) or "every figure is what its result says")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
