#!/usr/bin/env python3
"""ACT at its published size on a CPU, against LeRobot in LeRobot's own environment.

    python bench/inference/act.py [--cameras 1] [--rounds 20] [--threads 2]

Random weights, images of 480 x 640, ResNet18, chunks of 100 steps. LeRobot runs under the
interpreter that VLA_LEROBOT_PYTHON names, or the one that `make compat` made, and answers by its
own `predict_action`: processors and `select_action`, whose queue is emptied before. Each rival
lives in a process of its own and answers in turn on the same images, in rounds, so that other load
on the machine affects all equally; the others sleep. Times are from camera images to actions in
the robot's units: wall clock, and the processor time of all threads, which other load affects
less. Ratios are medians of the rounds' own ratios; errors are actions against LeRobot's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import add_output, keep

ROOT = Path(__file__).resolve().parents[2]
LEROBOT = ROOT / ".venv-compat" / "torch" / "bin" / "python"
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
RIVALS = {
    "lerobot": None,
    "plain": {"engine": "plain", "dtype": "float32"},
    "torch": {"engine": "torch", "dtype": "float32"},
    "torch bfloat16": {"engine": "torch", "dtype": "bfloat16"},
    "onnxruntime": {"engine": "plain", "dtype": "float32"},
}
SIZE = (480, 640)
JOINTS = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS))
    add_output(parser)
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Path(args.serve[1]), args.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.cameras)
        write_inputs(Path(folder), args.cameras)
        keep(compare(Path(folder), args), args.output)


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    names = [n for n in RIVALS if n in args.only]
    rivals = {name: start(name, folder, args.threads) for name in names}
    told = {name: ask(rival) for name, rival in rivals.items()}  # ready: versions
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(args.rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(ask(rivals[name], "go"))
    for rival in rivals.values():
        rival.kill()  # it has answered
        rival.wait()
    report: dict[str, Any] = {
        "cameras": args.cameras,
        "threads": args.threads,
        "rounds": args.rounds,
        "floor": work(args.cameras),
    }
    reference = np.load(folder / f"{names[0]}.npy")
    for name in names:
        answer = np.load(folder / f"{name}.npy")
        report[name] = {**told[name]}
        for kind in ("wall", "cpu"):
            mine = np.array([t[kind] for t in times[name]])
            first = np.array([t[kind] for t in times[names[0]]])
            report[name] |= {
                f"{kind}_median_ms": round(float(np.median(mine)), 1),
                f"{kind}_best_ms": round(float(mine.min()), 1),
                f"{names[0]}_over_it_{kind}": round(float(np.median(first / mine)), 2),
                f"{names[0]}_over_it_{kind}_best": round(float(first.min() / mine.min()), 2),
            }
        error = np.linalg.norm(answer - reference) / np.linalg.norm(reference)
        report[name]["error"] = float(f"{error:.2g}")
    return report


def work(cameras: int) -> dict[str, float]:
    """GFLOP of one answer, by convolutions without Winograd's form."""
    from vla_inference.policies.act.config import ACTConfig

    c = ACTConfig(cameras, JOINTS, JOINTS)
    h, w = SIZE
    stem = 64 * 147 * (h // 2) * (w // 2)
    blocks = 0
    for stage in range(4):
        pixels, width = (h >> stage + 2) * (w >> stage + 2), 64 << stage
        blocks += pixels * width * width * 9 * (4 if stage == 0 else 3)
        blocks += 0 if stage == 0 else pixels * width * (width // 2) * 10
    n = 2 + cameras * (h // 32) * (w // 32)
    layer = n * (4 * c.width**2 + 2 * c.width * c.mlp) + 2 * n * n * c.width
    step = c.chunk * (4 * c.width**2 + 2 * c.width * c.mlp + 2 * n * c.width)
    decoder = step + 2 * n * c.width**2
    return {
        "convolutions_gflop": round(2e-9 * cameras * (stem + blocks), 1),
        "encoder_gflop": round(2e-9 * c.encoder_layers * layer, 1),
        "decoder_gflop": round(2e-9 * decoder, 1),
    }


# -- a checkpoint as LeRobot saves it, and what it is asked ---------------------------------------


def write_checkpoint(folder: Path, cameras: int) -> None:
    import torch
    from safetensors.torch import save_file

    from vla_inference.policies.act.config import ACTConfig
    from vla_inference.policies.act.model import ACT

    torch.manual_seed(0)
    model = ACT(ACTConfig(cameras, JOINTS, JOINTS), vae=True)
    weights = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for value in weights.values():  # of the size that keeps features as large as they were
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    save_file(weights, folder / "model.safetensors")
    images = {f"observation.images.{name}": (3, *SIZE) for name in names_of(cameras)}
    features = {
        "observation.state": {"type": "STATE", "shape": [JOINTS]},
        **{k: {"type": "VISUAL", "shape": list(s)} for k, s in images.items()},
    }
    action = {"action": {"type": "ACTION", "shape": [JOINTS]}}
    modes = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD")
    config = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": features,
        "output_features": action,
        "device": "cpu",
        "chunk_size": 100,
        "n_action_steps": 100,
        "normalization_mapping": modes,
        "vision_backbone": "resnet18",
        "pretrained_backbone_weights": None,
        "replace_final_stride_with_dilation": False,
        "pre_norm": False,
        "dim_model": 512,
        "n_heads": 8,
        "dim_feedforward": 3200,
        "feedforward_activation": "relu",
        "n_encoder_layers": 4,
        "n_decoder_layers": 1,
        "use_vae": True,
        "latent_dim": 32,
        "n_vae_encoder_layers": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    statistics = {}
    for name, shape in {"observation.state": (JOINTS,), "action": (JOINTS,), **images}.items():
        size = (3, 1, 1) if len(shape) == 3 else shape
        statistics[f"{name}.mean"] = torch.full(size, 0.4)
        statistics[f"{name}.std"] = torch.full(size, 0.25)
    norm = {"eps": 1e-8, "norm_map": modes}
    placed = {
        "registry_name": "device_processor",
        "config": {"device": "cpu", "float_dtype": None},
    }
    for side, kind, given, before in (
        ("pre", "normalizer", {**features, **action}, ["rename_observations", "to_batch"]),
        ("post", "unnormalizer", action, []),
    ):
        state = f"policy_{side}processor_{kind}.safetensors"
        save_file(statistics, folder / state)
        plain: list[dict] = [{"registry_name": f"{b}_processor", "config": {}} for b in before]
        step = {
            "registry_name": f"{kind}_processor",
            "config": {**norm, "features": given},
            "state_file": state,
        }
        steps = [*plain, placed, step] if side == "pre" else [step, placed]
        text = json.dumps({"name": f"policy_{side}processor", "steps": steps})
        (folder / f"policy_{side}processor.json").write_text(text)


def names_of(cameras: int) -> list[str]:
    return ["top", "left_wrist", "right_wrist", "front"][:cameras]


def write_inputs(folder: Path, cameras: int) -> None:
    random = np.random.default_rng(0)
    images = {n: random.integers(0, 256, (*SIZE, 3), np.uint8) for n in names_of(cameras)}
    np.savez(folder / "inputs.npz", state=random.random(JOINTS, np.float32), **images)


# -- the rivals, each in a process of its own -----------------------------------------------------


def start(name: str, folder: Path, threads: int) -> subprocess.Popen:
    python, hidden = sys.executable, ()
    if name == "lerobot":
        python, hidden = os.environ.get("VLA_LEROBOT_PYTHON", str(LEROBOT)), HIDDEN
        if not Path(python).exists():
            sys.exit(
                "LeRobot has no environment here; make it: python tools/compat.py torch --make"
            )
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    # As in the node: threads that spin while they wait take the processor from one another.
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = [python, __file__, "--threads", str(threads), "--serve", name, str(folder)]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=folder
    )


def ask(rival: Any, word: str = "") -> dict[str, Any]:
    if word:
        rival.stdin.write(f"{word}\n")
        rival.stdin.flush()
    while line := rival.stdout.readline():
        if line.startswith("{"):
            return json.loads(line)
    sys.exit("a rival has ended")


def serve(name: str, folder: Path, threads: int) -> None:
    """Answers each line on standard input by the times of one answer."""
    import time

    import torch

    torch.set_num_threads(threads)
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    answer, whole, versions = (lerobot if name == "lerobot" else ours)(name, folder)
    for _ in range(3):
        answer(inputs)
    np.save(folder / f"{name}.npy", whole(inputs))
    print(json.dumps({"versions": {"torch": torch.__version__, **versions}}), flush=True)
    for _ in sys.stdin:
        answer(inputs)  # wakes threads and caches
        wall, cpu = time.perf_counter(), time.process_time()
        answer(inputs)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({k: 1e3 * v for k, v in spent.items()}), flush=True)


def lerobot(name: str, folder: Path):
    import torch
    from lerobot import __version__
    from lerobot.common.control_utils import predict_action
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = ACTPolicy.from_pretrained(str(folder))
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    device = torch.device("cpu")

    def features(inputs: dict) -> dict:
        cameras = {f"observation.images.{k}": v for k, v in inputs.items() if k != "state"}
        return {"observation.state": inputs["state"], **cameras}

    def answer(inputs: dict) -> None:
        policy.reset()  # an action of the chunk before would be the answer
        predict_action(features(inputs), policy, device, before, after, use_amp=False)

    def whole(inputs: dict) -> np.ndarray:
        answer(inputs)
        left = [after(a) for a in policy._action_queue]
        return torch.cat(left).numpy()

    return answer, whole, {"lerobot": __version__}


def ours(name: str, folder: Path):
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy
    from vla_inference.types import Observation

    policy = load_policy(folder, LoadOptions(device="cpu", **RIVALS[name]))
    versions = {}
    if name == "onnxruntime":
        versions["onnxruntime"] = whole_graph(policy, folder)

    def act(inputs: dict) -> np.ndarray:
        images = {k: v for k, v in inputs.items() if k != "state"}
        return policy.act(Observation(images, "", inputs["state"])).actions

    return act, lambda inputs: act(inputs)[1:], versions


def whole_graph(policy: Any, folder: Path) -> str:
    """Puts the policy's network into one graph of ONNX Runtime; returns its version."""
    import onnxruntime
    import torch

    images, state = policy.inputs([policy.needs.grey()])
    file = str(folder / "act.onnx")
    with torch.no_grad():
        torch.onnx.export(policy.model, (images, state), dynamo=True, verbose=False).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(images, state):
        feed = dict(zip(names, (x.numpy() for x in [*images, state]), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    policy.run = run
    return onnxruntime.__version__


if __name__ == "__main__":
    main()
