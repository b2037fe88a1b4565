"""Films the first episodes of a run, every second control step, and keeps a poster image.

Of all others the images that the model is given are held until their end: a failed episode becomes
a film of its own, without anything being rendered for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vla_sim_bridge.evaluation.run import ClosedLoopEvaluation
from vla_sim_bridge.evaluation.video import END_FRAMES, SIZE, Caption, Film, draw

FILM, POSTER, FAILURES = "episodes.mp4", "poster.png", "failures"
Seen = Sequence[tuple[np.ndarray, int]]  # images [H, W, 3], and at which steps
MOST_IMAGES = 1000  # of an episode, that are held
SLOW = 5  # images per second of a failure's film


class RunRecorder:
    """Records a video; call `step` after every control step and `end` after every episode."""

    def __init__(
        self,
        evaluation: ClosedLoopEvaluation,
        folder: Path,
        episodes: int,
        camera: str,
        every: int = 2,
        failures: int = 0,
    ):
        self.evaluation, self.folder, self.episodes = evaluation, folder, episodes
        self.failures = failures  # that may still be kept
        self._seen: list[tuple[np.ndarray, int]] = []
        self.camera, self.every = camera, every
        self.film = Film(folder / FILM, rate=20 // every)
        self.filmed = 0  # episodes that ended on film
        self._steps = 0
        self._poster_of_success = False

        if episodes:
            # The first image of this size and the encoder take a second to get ready: now,
            # not while a model waits.
            evaluation.sim.render(camera, SIZE, SIZE)
            self.film.prepare()

    @property
    def filming(self) -> bool:
        return self.filmed < self.episodes

    def see(self, image: np.ndarray) -> None:
        """An image [H, W, 3] that the model is given."""
        if self.failures and len(self._seen) < MOST_IMAGES:
            run = self.evaluation.run
            self._seen.append((image, 0 if run is None else run.step_count))

    def step(self) -> None:
        self._steps += 1
        if self.filming and self._steps % self.every == 0:
            self.film.add(self._image())

    def end(self) -> None:
        """Shows the outcome for a while after the episode."""
        self._keep_failure()
        if not self.filming:
            return
        image = self._image()
        self.film.add(image, END_FRAMES // self.every)
        self.filmed += 1
        success = self.evaluation.episode.outcome == "success"
        if success > self._poster_of_success or self.filmed == 1:
            self._poster_of_success = success
            Image.fromarray(image).save(self.folder / POSTER)
        if not self.filming:
            self.film.close()

    def _keep_failure(self) -> None:
        """A failed episode's own film, as long as there is to be one more."""
        seen, self._seen = self._seen, []
        run = self.evaluation.episode
        if not seen or run.outcome in ("success", "aborted"):
            return
        self.failures -= 1
        write_failure(
            self.folder,
            run.index,
            seen,
            lambda step, last: self._caption(run.step_count if last else step, last),
        )

    def _image(self) -> np.ndarray:
        caption = self._caption(self.evaluation.episode.step_count)
        return draw(self.evaluation.sim.render(self.camera, SIZE, SIZE), caption)

    def _caption(self, step: int, ended: bool = True) -> Caption:
        evaluation, run = self.evaluation, self.evaluation.episode
        return Caption(
            evaluation.sim.instruction,
            len(evaluation.results) + (not run.done),
            evaluation.episodes,
            step,
            run.outcome if ended else "running",
            run.index,
        )

    def close(self) -> None:
        self.film.close()


def write_failure(
    folder: Path, index: int, seen: Seen, caption: Callable[[int, bool], Caption]
) -> None:
    """Film of the images that the model was given in an episode of a run's `folder`.

    caption: of a step, and whether it is the last image's.
    """
    (folder / FAILURES).mkdir(exist_ok=True)
    film = Film(folder / FAILURES / f"episode_{index}.mp4", SLOW)
    for number, (image, step) in enumerate(seen):
        last = number == len(seen) - 1
        shown = np.asarray(Image.fromarray(image).resize((SIZE, SIZE)))
        film.add(draw(shown, caption(step, last)), SLOW if last else 1)
    film.close()
