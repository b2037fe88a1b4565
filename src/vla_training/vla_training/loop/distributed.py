"""Runs training on one or many devices and hosts, under torchrun or alone.

Full fine-tuning shards parameters, gradients and optimiser states (FSDP2, `fully_shard`): float32
masters, gathered as bfloat16 layer by layer. LoRA keeps a copy of the frozen base on each device
and averages the adapters' gradients alone.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_training.loop.objective import Objective

PATIENCE = datetime.timedelta(minutes=10)  # for a rank that says nothing: then the run ends


@dataclass(frozen=True)
class Place:
    """The rank of this process in the run."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def agree(self, value: float, how: str = "max") -> float:
        """The maximum ("max") or mean ("avg") of the values of all processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
        return tensor.item() / (1 if how == "max" else self.world)


def start(device: str | None = None, sharded: bool = False) -> Place:
    """Joins the run described by torchrun's environment.

    device: "cpu" or "cuda"; None takes CUDA where there is one.
    sharded: a process group is needed even for one process.
    """
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise VlaError("device 'cuda' was requested, but there is no CUDA", "use cpu")
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    where = device or kind
    if kind == "cuda" and (world > 1 or device in (None, "cuda")):
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise VlaError(
                f"process {local} of this host has no GPU, there are {torch.cuda.device_count()}",
                "start one process per GPU (torchrun --nproc-per-node)",
            )
        where = f"cuda:{local}"
        torch.cuda.set_device(local)
    if (world > 1 or sharded) and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        options: dict[str, Any] = (
            {} if world > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        )
        dist.init_process_group(backend, timeout=PATIENCE, **options)
    return Place(rank, world, where)


def is_lost(error: RuntimeError, place: Place) -> bool:
    """Whether an error says that another process does not answer."""
    words = ("Connection closed", "Connection reset", "Broken pipe", "imed out", "NCCL", "gloo")
    return place.world > 1 and any(w in str(error) for w in words)


def stop() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # of one whose peers have gone
            dist.destroy_process_group()


def shard(
    objective: Objective,
    place: Place,
    reshard: bool = True,
    ahead: int = 2,
    low: torch.dtype | None = None,
) -> None:
    """Shards the model over all devices, in place; its parameters become float32.

    reshard: give up a layer's gathered weights after the forward pass and gather them again on the
        way back. False is faster and keeps the whole model in bfloat16 on each device.
    ahead: how many layers are gathered before they are needed. low: what layers compute in;
        gradients are summed in float32, over devices and over an accumulation.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = place.device.split(":")[0]
    low = low or (torch.bfloat16 if kind == "cuda" else torch.float32)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(kind, (place.world,)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    }
    layers = objective.layers()
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard, **options)
    fully_shard(objective, reshard_after_forward=False, **options)
    for i, layer in enumerate(layers):
        sharded: Any = layer  # `fully_shard` made it an FSDPModule
        sharded.set_modules_to_forward_prefetch(layers[i + 1 : i + 1 + ahead])
        sharded.set_modules_to_backward_prefetch(layers[max(0, i - ahead) : i][::-1])
    objective.float()  # only now, so that no device ever holds all of it in float32


def is_sharded(objective: nn.Module) -> bool:
    return hasattr(objective, "set_requires_gradient_sync")


def communicate(objective: nn.Module, now: bool) -> None:
    """Whether the next backward pass exchanges gradients: only the last of an accumulation
    must."""
    if is_sharded(objective):
        sharded: Any = objective
        sharded.set_requires_gradient_sync(now)
        sharded.set_is_last_backward(now)


def average_gradients(parameters: Sequence[Tensor], place: Place) -> None:
    """Averages the gradients of replicated parameters over all processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if place.world == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= place.world
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients over all devices; stays on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def scale_gradients(parameters: Sequence[Tensor], factor: Tensor | float) -> None:
    gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
    if isinstance(factor, Tensor) and hasattr(gradients[0], "to_local"):
        gradients = [g.to_local() for g in gradients]
    torch._foreach_mul_(gradients, factor)
