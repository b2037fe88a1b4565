"""Reset images: one image at the start of an episode, with targets for both orders.

A demonstration decides once which object it goes for, and costs some eighty images. A reset image
costs one: the scene at the reset, and for either order of its two roles where everything is and
what the expert does first. Reset image i of a seed is always the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import h5py
import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import Staged
from vla_inference.system.worker_pool import WorkerPool
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.tasks import Scene
from vla_training.small_model.auxiliary_targets import (
    SIZE,
    colours_of,
    other_order,
    scene_numbers,
    wordings,
)
from vla_training.small_model.config import ResetImagesWanted

STEPS = 4  # that the expert takes from a reset image
PART = 250  # reset images of a file


def make_reset_image(sim: Simulation, seed: int, index: int, steps: int) -> dict:
    """image [H, W, 3]; scenes [2, SIZE]; actions [2, steps, 7], SI; record: as it was drawn."""
    sim.reset(episode_rng("still", seed, index))
    drawn = sim.scene
    other = other_order(drawn)
    if other is None or wordings(sim.task.name, other, 1) is None:
        raise VlaError(
            f"{sim.task.name} has no other order",
            "reset images need a task with two roles and one sentence per episode",
        )
    image = sim.render(sim.cameras[0])
    expert = expert_for(sim.task)
    scenes: list = []
    actions: list = []
    for scene in (drawn, other):
        if actions:  # the world as it was
            sim.reset(episode_rng("still", seed, index))
        sim.scene = scene
        lifted, under = (sim.pose(s.object)[None] for s in sim.task.subtasks[:2])
        fingers = np.abs(sim.state()[6:8]).mean(keepdims=True)
        colours = colours_of(sim.task, scene)
        scenes.append(scene_numbers(sim.eef_pose()[None], lifted, under, fingers, colours)[0])
        actions.append(np.zeros((steps, 7), np.float32))
        for row in actions[-1]:
            row[:] = expert(sim)
            sim.step(row)
    record = {"colours": dict(drawn.colours), "roles": dict(drawn.roles)}
    return {
        "image": image,
        "scenes": np.stack(scenes),
        "actions": np.stack(actions),
        "record": json.dumps(record),
    }


def write_reset_images(
    path: str | Path, sim: Simulation, seed: int, indices: Iterable[int], steps: int
) -> int:
    """Makes these reset images and writes them atomically. Returns their number."""
    staged = Staged(path)
    reset_images: list = []
    try:
        with h5py.File(staged.staged, "w") as file:
            shape = (sim.height, sim.width, 3)
            images = file.create_dataset(
                "images", (0, *shape), np.uint8, maxshape=(None, *shape), chunks=(1, *shape)
            )
            for index in indices:
                reset_image = make_reset_image(sim, seed, index, steps)
                images.resize(len(reset_images) + 1, 0)
                images[-1] = reset_image.pop("image")
                reset_images.append(reset_image)
            for name in ("scenes", "actions") if reset_images else ():
                file[name] = np.stack([s[name] for s in reset_images])
            file["records"] = np.array([s["record"] for s in reset_images], h5py.string_dtype())
            file.attrs["reset_images"] = sim.task.name
        if reset_images:
            staged.commit()
    finally:
        staged.discard()
    return len(reset_images)


def make_reset_images(
    folder: Path,
    wanted: Sequence[ResetImagesWanted],
    parallel: int,
    report: Callable[[dict], None] = lambda _: None,
) -> list[Path]:
    """Makes them with `parallel` processes, PART per file; existing files are kept."""
    jobs = {}
    for w in wanted:
        for begin in range(0, w.count, PART):
            part = range(begin, min(begin + PART, w.count))
            path = folder / f"{w.task}_seed{w.seed}_{part.start:06d}-{part.stop:06d}.hdf5"
            jobs[path] = (w.task, w.seed, part)
    missing = {path: job for path, job in jobs.items() if not path.exists()}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with WorkerPool(max(1, min(parallel, len(missing)))) as pool:
            try:
                made = [pool.submit(_make_part, str(p), *job) for p, job in missing.items()]
                for done, job in enumerate(as_completed(made), 1):
                    job.result()
                    report({"message": f"reset images: {done} of {len(made)} files"})
            except BaseException:
                pool.close()
                raise
    return list(jobs)


def _make_part(path: str, task: str, seed: int, indices: range) -> None:
    sim = Simulation(task)
    try:
        write_reset_images(path, sim, seed, indices, STEPS)
    finally:
        sim.close()


def is_reset_images(path: str | Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "reset_images" in file.attrs
    except OSError:  # a folder, another format, or damaged: the dataset's reader says which
        return False


class ResetImages:
    """A file of reset images."""

    def __init__(self, path: str | Path):
        self.path, self.file = Path(path), h5py.File(path, "r")
        self.task = str(self.file.attrs["reset_images"])
        self.scenes, self.actions = self.file["scenes"][:], self.file["actions"][:]
        if self.scenes.shape[-1] != SIZE:
            raise DataError(
                f"{path} has scenes of {self.scenes.shape[-1]} numbers", "make it again"
            )
        if not np.isfinite(self.scenes[..., :9]).all() or not np.isfinite(self.actions).all():
            raise DataError(f"{path} has numbers that are not finite", "make it again")
        records = [json.loads(r) for r in self.file["records"].asstr()[:]]
        self.drawn = [Scene(r["colours"], r["roles"]) for r in records]

    def __len__(self) -> int:
        return len(self.drawn)

    def images(self, begin: int, end: int) -> np.ndarray:
        """uint8 [end - begin, H, W, 3]"""
        return self.file["images"][begin:end]
