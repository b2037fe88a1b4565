#!/usr/bin/env python3
"""Fine-tuning of the 7B shape on several GPUs: samples/s, utilisation, memory, where time is lost.

    torchrun --standalone --nproc-per-node 8 bench/training/finetune_scaling.py [--batch 32]
                             # full, FSDP2
    ... --rank 32            # LoRA: a copy a GPU, gradients averaged
    ... --save FOLDER        # write the state, tell the loss of the steps that follow
    ... --resume FOLDER      # on another number of GPUs: the same losses

The trainer's own pieces: weights drawn on each device and sharded (float32 masters, bf16 weights
and gradients on the wire), each layer compiled, batches read from an HDF5 file of images by
worker processes, gradients clipped, fused AdamW. One JSON line per measurement, by the first
process. Seconds lost to communication are those of a step less those of one that neither gathers
nor reduces; those lost to data are spent waiting for the next batch. Utilisation counts 6
operations per weight and token, of LoRA 4 and 6 per adapter weight
(`vla_training.finetune.flops`), over the GPU's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
import torch.distributed as dist
from common import add_output, keep
from steps import MODES, Loop, synchronize

from vla_inference.checkpoints.random_weights import SIZES, STATISTICS, random_config, random_model
from vla_inference.openvla.config import PROMPTS, ModelConfig
from vla_training.finetune.families.openvla.format import OpenVLAFormat
from vla_training.finetune.families.openvla.objective import OpenVLAObjective
from vla_training.finetune.families.openvla.train_modules import prepare
from vla_training.finetune.flops import peak_of, step_flops
from vla_training.loader.batch import Batch
from vla_training.loader.frame_index import DatasetSource, index_frames
from vla_training.loader.mixture import Samples, batches, mix
from vla_training.loop import distributed
from vla_training.loop.training_state import find_states, load_state, save_state
from vla_training.lora.layers import LoraConfig, add_lora

SENTENCES = (
    "stack the red block on top of the green block",
    "put the little cube on the blue one",
    "place the yellow block on the other one",
)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="openvla-7b" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--rank", type=int, default=0, help="of LoRA; 0 trains all weights")
    parser.add_argument("--layers", type=int, help="of the Llama, where less than all will do")
    parser.add_argument(
        "--batch",
        default="32" if cuda else "2",
        help="samples per GPU and step; several, by commas, are measured one after the other",
    )
    parser.add_argument("--recompute", type=float, default=0.0, help="share of layers")
    parser.add_argument("--reshard", action="store_true", help="gather layers twice, save memory")
    parser.add_argument("--compile", default="inductor" if cuda else "no", help="or eager, no")
    parser.add_argument("--steps", type=int, default=10 if cuda else 3)
    parser.add_argument("--warmup", type=int, default=4 if cuda else 1)
    parser.add_argument("--workers", type=int, default=6 if cuda else 0, help="per GPU")
    parser.add_argument("--dataset", help="train on this one; noise is written if left out")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--check-batch", type=int, default=16, help="samples of a checked step")
    add_output(parser)
    args = parser.parse_args()
    if args.rank and (args.save or args.resume):
        parser.error("--save and --resume check the full model's state: leave --rank out")
    torch.set_float32_matmul_precision("high")
    place = distributed.start(sharded=not args.rank)
    bench = Bench(args, place)
    bench.run()
    if place.first:
        keep({"size": args.size, "rows": bench.told}, args.output, show=False)
    place.barrier()
    distributed.stop()


class Bench:
    def __init__(self, args: argparse.Namespace, place: distributed.Place):
        self.told: list[dict] = []
        self.args, self.place, self.cuda = args, place, place.device.startswith("cuda")
        raw = {**random_config(args.size, "tokens"), "norm_stats": STATISTICS}
        config = ModelConfig.from_json(raw)
        if args.layers:
            llm = dataclasses.replace(config.llm, num_hidden_layers=args.layers)
            config = dataclasses.replace(config, llm=llm)
        self.config = config
        begin = time.perf_counter()
        dtype = torch.bfloat16 if self.cuda else torch.float32
        model = random_model(config, place.device, dtype)
        if args.rank:
            add_lora(model, LoraConfig(args.rank))
        else:
            model.requires_grad_(True)
        compiled, backend = MODES[args.compile]
        prepare(model, compiled, args.recompute, backend)
        self.objective = OpenVLAObjective(model).train()
        low = None
        if args.save or args.resume:  # in float32, so that what differs is the state
            torch.set_float32_matmul_precision("highest")
            low = torch.float32
        if not args.rank:
            distributed.shard(self.objective, place, args.reshard, low=low)
        self.loop = Loop(self.objective, args.learning_rate)
        self.parameters, self.optimizer = self.loop.trained, self.loop.optimizer
        self.empty_cache()
        self.tell(
            point="start",
            gpus=place.world,
            parameters=sum(p.numel() for p in self.parameters),
            make_s=round(time.perf_counter() - begin, 1),
            held_gb=self.held(),
        )
        self.samples = self.open_data()

    def run(self) -> None:
        args = self.args
        if args.save or args.resume:
            self.check_state()
            return
        for text in args.batch.split(","):
            try:
                self.measure(int(text))
            except torch.cuda.OutOfMemoryError as error:  # on all devices
                self.tell(point="memory", batch_per_gpu=int(text), out_of_memory=str(error)[:120])
                self.optimizer.zero_grad(set_to_none=True)
                self.empty_cache()

    # -- data ---------------------------------------------------------------------------------

    def open_data(self) -> Samples:
        folder = [tempfile.mkdtemp() if self.place.first else None]
        if dist.is_initialized():
            dist.broadcast_object_list(folder, 0)
        path = self.args.dataset or f"{folder[0]}/noise.hdf5"
        if not self.args.dataset and self.place.first:
            write_noise(path, self.config.encoders[0].image_size)
        self.place.barrier()
        source, tokenizer = DatasetSource(path), word_tokenizer(sentences(path))
        if self.place.first:
            index_frames(source, folder[0])
        self.place.barrier()
        config = dataclasses.replace(self.config, center_crop=0.9)
        index = index_frames(source, folder[0])
        mixture, _ = mix([source], [index], config.head.action_dim)
        form = OpenVLAFormat(config, tokenizer, mixture.statistics, mixture.spaces)
        return Samples(mixture, form, 0, augmented=True)

    # -- steps --------------------------------------------------------------------------------

    def measure(self, size: int) -> None:
        args, place = self.args, self.place
        total = args.warmup + args.steps
        loader = batches(
            self.samples, 0, total, size, args.workers, place.rank, place.world, pin=self.cuda
        )
        step_s, update_s, wait_s, averaging, losses = [], [], [], [], []
        begin = time.perf_counter()
        for i in range(total):
            if i == args.warmup:
                synchronize(place.device)
                warm = time.perf_counter() - begin
                self.reset_peak()
            synchronize(place.device)
            t0 = time.perf_counter()
            batch = next(loader).to(place.device)
            t1 = time.perf_counter()
            losses.append(self.loop.forward_backward(batch))
            synchronize(place.device)
            t2 = time.perf_counter()
            if args.rank:
                distributed.average_gradients(self.parameters, place)
                synchronize(place.device)
                averaging.append(time.perf_counter() - t2)
            self.loop.update()
            synchronize(place.device)
            t3 = time.perf_counter()
            if i >= args.warmup:
                step_s.append(t3 - t0)
                wait_s.append(t1 - t0)
                update_s.append(t3 - t2)
        step, update, wait = median(step_s), median(update_s), median(wait_s)
        peak = self.peak()
        alone = 0.0 if args.rank else self.without_communication(batch, args.warmup)
        samples_per_s = size * place.world / step
        prompt = batch.ids.shape[1]
        adapters = sum(p.numel() for p in self.parameters) if args.rank else None
        flops = step_flops(self.config, size, prompt, adapters)
        ceiling = peak_of(torch.cuda.get_device_name()) if self.cuda else None
        lost = median(averaging) if args.rank else max(0.0, step - wait - update - alone)
        self.tell(
            point="lora" if args.rank else "full",
            gpus=place.world,
            batch_per_gpu=size,
            recompute=args.recompute,
            reshard=args.reshard,
            compile=args.compile,
            prompt=prompt,
            samples_per_s=round(place.agree(samples_per_s, "avg"), 2),
            step_s=round(step, 4),
            mfu=ceiling and round(flops / step / ceiling, 4),
            tflops=round(flops / step / 1e12, 1),
            communication_s=round(lost, 4),
            communication_share=round(lost / step, 4),
            data_wait_s=round(place.agree(wait), 4),
            update_s=round(update, 4),
            graphs=torch._dynamo.utils.counters["stats"]["unique_graphs"],
            peak_gb=place.agree(peak),
            warm_up_s=round(warm, 1),
            losses=[round(v.item(), 3) for v in losses],
        )

    def without_communication(self, batch: Batch, warmup: int) -> float:
        """Seconds of forward and backward with every weight at hand and no gradient sent."""
        self.objective.set_requires_gradient_sync(False)
        self.objective.set_is_last_backward(False)
        self.objective.set_reshard_after_backward(False)
        self.set_reshard(False)
        seconds = []
        try:
            for i in range(2 + 5):
                synchronize(self.place.device)
                begin = time.perf_counter()
                self.loop.forward_backward(batch)
                synchronize(self.place.device)
                if i >= 2:
                    seconds.append(time.perf_counter() - begin)
        except torch.cuda.OutOfMemoryError:
            seconds = [float("nan")]
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.set_requires_gradient_sync(True)
        self.objective.set_is_last_backward(True)
        self.objective.set_reshard_after_backward(True)
        self.set_reshard(self.args.reshard)
        # One more step ends what was kept unsharded.
        self.loop.forward_backward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.empty_cache()
        return median(seconds)

    def set_reshard(self, on: bool) -> None:
        from vla_training.finetune.families.openvla.train_modules import layers_of

        for layer in layers_of(self.objective.vla):
            layer.set_reshard_after_forward(on)

    # -- saving on one number of GPUs, going on on another ------------------------------------

    def check_state(self) -> None:
        """Two steps on given global batches, then two more: on any number of GPUs the same."""
        args, place = self.args, self.place
        size = args.check_batch // place.world
        if size * place.world != args.check_batch:
            raise SystemExit(f"{place.world} GPUs cannot share {args.check_batch} samples evenly")
        first = 2
        if args.resume:
            begin = time.perf_counter()
            about = load_state(find_states(args.resume)[-1], self.objective, self.optimizer)
            self.tell(point="loaded", seconds=round(time.perf_counter() - begin, 1), about=about)
        else:
            self.tell(point="before", losses=self.losses(0, first, size))
            begin = time.perf_counter()
            save_state(args.save, first, self.objective, self.optimizer, {}, place)
            self.tell(point="saved", seconds=round(time.perf_counter() - begin, 1))
        self.tell(point="after", gpus=place.world, losses=self.losses(first, first + 2, size))

    def losses(self, begin: int, end: int, size: int) -> list[float]:
        found = []
        place = self.place
        loader = batches(self.samples, begin, end, size, 0, place.rank, place.world)
        for batch in loader:
            loss = self.loop.forward_backward(batch.to(place.device))
            self.loop.update()
            found.append(round(place.agree(loss.item(), "avg"), 6))
        return found

    # -- small things -------------------------------------------------------------------------

    def tell(self, **values) -> None:
        self.told.append(values)
        if self.place.first:
            print(json.dumps(values), flush=True)

    def held(self) -> float:
        return round(torch.cuda.memory_allocated() / 1e9, 2) if self.cuda else 0.0

    def peak(self) -> float:
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else 0.0

    def reset_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def empty_cache(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def sentences(path: str) -> list[str]:
    import h5py

    with h5py.File(path) as file:
        return sorted({t for d in file["data"].values() for t in d["instructions"].asstr()[:]})


def word_tokenizer(texts: list[str]):
    """An id per word: prompts of some 22 tokens, about as many as Llama's tokenizer makes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    split = pre_tokenizers.Whitespace()
    text = " ".join([PROMPTS["openvla"], *texts])
    words = ["<unk>", *sorted({w for w, _ in split.pre_tokenize_str(text)})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = split
    return tokenizer


def write_noise(path: str, size: int, episodes: int = 8, length: int = 60) -> None:
    """An HDF5 file as the generator writes it, of blurred noise."""
    import h5py

    from vla_inference.episodes.hdf5 import write_columns, write_header

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        write_header(file, "noise", episodes, {})
        for i in range(episodes):
            cells = rng.integers(0, 256, (length, 16, 16, 3), np.uint8)
            images = cells.repeat(size // 16, 1).repeat(size // 16, 2)
            write_columns(
                file["data"].create_group(f"demo_{i}"),
                {
                    "actions": rng.uniform(-1, 1, (length, 7)),
                    "states": np.zeros((length, 8)),
                    "rewards": np.zeros(length),
                    "dones": np.zeros(length),
                    "instructions": [SENTENCES[i % len(SENTENCES)]] * length,
                    "obs": {"agentview_image": images},
                },
            )


if __name__ == "__main__":
    main()
