#!/usr/bin/env python3
"""The CPU engine against plain PyTorch and ONNX Runtime, from image to action.

    python bench/inference/cpu_engine.py [--model models/stack-small] [--rounds 30] [--threads 2]

Each rival lives in a process of its own and answers in turn on the same images, in rounds, so
that other load on the machine affects all equally; the others sleep. ONNX Runtime runs the whole
model as one graph, exported here, between this package's preprocessing and denormalisation.
Ratios are medians of the rounds' own ratios. Errors are normalised actions against plain float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

# As in the node: threads that spin while they wait take the processor from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

RIVALS = {
    "plain": ("plain", "float32"),
    "torch": ("torch", "float32"),
    "onnxruntime": ("onnx", "float32"),
    "plain bfloat16": ("plain", "bfloat16"),
    "torch bfloat16": ("torch", "bfloat16"),
}
ROOT = Path(__file__).resolve().parents[2]
PER_ROUND = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models/stack-small"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS))
    add_output(parser)
    args = parser.parse_args()
    observations = look()
    names = ["plain", *(n for n in args.only if n != "plain")]
    context = multiprocessing.get_context("spawn")
    lines = {}
    for name in names:
        here, there = context.Pipe()
        values = (there, *RIVALS[name], args.model, args.threads, observations)
        context.Process(target=serve, args=values, daemon=True).start()
        here.recv()  # ready; one after the other
        lines[name] = here
    times = {name: [] for name in names}
    answers: dict[str, np.ndarray] = {}
    for i in range(args.rounds):
        order = names[i % len(names) :] + names[: i % len(names)]
        for name in order:
            lines[name].send(i)
            spent, answers[name] = lines[name].recv()
            times[name].append(spent)
            if name == "plain":
                reference = answers[name]
    for line in lines.values():
        line.send(None)
    medians = {name: np.median(times[name], axis=1) for name in names}
    report = {"threads": args.threads, "rounds": args.rounds, "per_round": PER_ROUND}
    for name in names:
        every = np.concatenate(times[name])
        report[name] = {
            "median_ms": round(float(np.median(every)), 2),
            "p10_ms": round(float(np.percentile(every, 10)), 2),
            "p95_ms": round(float(np.percentile(every, 95)), 2),
            "plain_over_it": round(float(np.median(medians["plain"] / medians[name])), 2),
            "largest_error": float(f"{np.abs(answers[name] - reference).max():.2g}"),
        }
        if "onnxruntime" in names:
            ratio = np.median(medians["onnxruntime"] / medians[name])
            report[name]["onnxruntime_over_it"] = round(float(ratio), 2)
    keep(report, args.output)


def look() -> list:
    """The first images of PER_ROUND episodes, with the first one's sentence."""
    from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng

    sim, seen = Simulation("Stack_D0"), []
    for i in range(PER_ROUND):
        sim.reset(episode_rng("evaluate", 7, i))
        seen.append(sim.observation())
    return [dataclasses.replace(o, instruction=seen[0].instruction) for o in seen]


def serve(line, engine: str, dtype: str, model: str, threads: int, observations: list) -> None:
    import torch

    from vla_inference.policies.openvla.policy import OpenVLAPolicy

    torch.set_num_threads(threads)
    policy = OpenVLAPolicy.from_pretrained(
        model, device="cpu", dtype=dtype, engine="plain" if engine == "onnx" else engine
    )
    if engine == "onnx":
        policy.engine = whole_graph(policy, threads, observations[0])
    for observation in observations * 2:
        policy.predict_action(observation, action_space="normalized")
    line.send("ready")
    while line.recv() is not None:
        policy.predict_action(observations[0])  # wakes threads and caches
        spent, actions = [], []
        for observation in observations:
            chunk = policy.predict_action(observation, action_space="normalized")
            spent.append(chunk.timing["total"])
            actions.append(chunk.actions)
        line.send((spent, np.stack(actions)))


def whole_graph(policy, threads: int, example):
    """An engine whose L1 answer, from pixels and ids, is one run of ONNX Runtime."""
    import onnxruntime
    import torch

    from vla_inference.engines import Engine

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vla = policy.model

        def forward(self, ids, pixels):
            return self.vla.predict_chunk(self.vla.context(ids, pixels))

    ids = policy._ids(example.instruction)
    size = policy.config.encoders[0].image_size
    pixels = torch.zeros(1, 3 * len(policy.config.encoders), size, size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = f"{folder}/model.onnx"
        torch.onnx.export(
            Whole().eval(), (ids, pixels), dynamo=True, opset_version=20, verbose=False
        ).save(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    frozen = ids.shape

    class Graph(Engine):
        def observe(self, ids, images, proprio=None):
            if ids.shape != frozen:
                sys.exit("the images' sentences must be equally long")
            return {names[0]: ids.numpy(), names[1]: self._preprocess.normalise(images[0])[None]}

        def action_hidden(self, context, lengths=None):
            feed = {k: np.asarray(v) for k, v in context.items()}
            return torch.from_numpy(session.run(None, feed)[0])

        def read_chunk(self, hidden):
            return hidden

    return Graph(policy.model)


if __name__ == "__main__":
    main()
