"""Films the first episodes of a run, every second control step, and keeps a poster image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vla_sim_bridge.evaluation.run import ClosedLoopEvaluation
from vla_sim_bridge.evaluation.video import END_FRAMES, SIZE, Caption, Film, draw

FILM, POSTER = "episodes.mp4", "poster.png"


class RunRecorder:
    """Records a video; call `step` after every control step and `end` after every episode."""

    def __init__(
        self,
        evaluation: ClosedLoopEvaluation,
        folder: Path,
        episodes: int,
        camera: str,
        every: int = 2,
    ):
        self.evaluation, self.folder, self.episodes = evaluation, folder, episodes
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

    def step(self) -> None:
        self._steps += 1
        if self.filming and self._steps % self.every == 0:
            self.film.add(self._image())

    def end(self) -> None:
        """Shows the outcome for a while after the episode."""
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

    def _image(self) -> np.ndarray:
        evaluation, run = self.evaluation, self.evaluation.episode
        caption = Caption(
            evaluation.sim.instruction,
            len(evaluation.results) + (not run.done),
            evaluation.episodes,
            run.step_count,
            run.outcome,
        )
        return draw(evaluation.sim.render(self.camera, SIZE, SIZE), caption)

    def close(self) -> None:
        self.film.close()
