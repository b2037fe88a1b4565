"""Writes a video of episodes, with a caption below and the outcome at each end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_sim_bridge.evaluation.episode import WRONG

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

SIZE = 400  # pixels, the image's width and height
STRIP = 48  # pixels above it: players cover what is below
END_FRAMES = 16  # how long an outcome stays
INK, PALE, BACK = (235, 238, 242), (150, 158, 168), (22, 25, 29)
COLOURS = {
    "success": (76, 175, 110),
    "timeout": (214, 96, 77),
    **dict.fromkeys(WRONG, (201, 119, 209)),
    "aborted": (160, 160, 160),
}


@dataclass
class Caption:
    """The text above the image."""

    instruction: str
    episode: int  # from 1
    episodes: int
    step: int
    outcome: str = "running"
    index: int | None = None  # how the report calls the episode


def draw(image: np.ndarray, caption: Caption) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3] -> uint8 [STRIP + SIZE, SIZE, 3], the caption above."""
    canvas = Image.new("RGB", (SIZE, SIZE + STRIP), BACK)
    canvas.paste(Image.fromarray(image), (0, STRIP))
    pen = ImageDraw.Draw(canvas)
    large, small = _font(13), _font(12)
    text = fitted_text(pen, caption.instruction, large, SIZE - 20)
    pen.text((10, 6), text, font=large, fill=INK)
    line = f"episode {caption.episode} of {caption.episodes}"
    line += "" if caption.index is None else f" (#{caption.index})"
    pen.text((10, 27), line, font=small, fill=PALE)
    ended = caption.outcome in COLOURS
    right = f"{caption.outcome}, step {caption.step}" if ended else f"step {caption.step}"
    width = pen.textlength(right, font=small)
    pen.text((SIZE - 10 - width, 27), right, font=small, fill=COLOURS.get(caption.outcome, PALE))
    if ended:
        pen.rectangle((0, STRIP - 3, SIZE, STRIP - 1), fill=COLOURS[caption.outcome])
    return np.asarray(canvas)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)  # Pillow's own: no font need be installed


def fitted_text(pen: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    """The part of a text that fits into `width` pixels."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


class Film:
    """An H.264 file that is written image by image, opened with the first one."""

    def __init__(self, path: Path, rate: int = 20):
        self.path, self.rate = path, rate
        self.frames = 0
        self._opened: tuple[OutputContainer, VideoStream] | None = None

    def prepare(self) -> None:
        """Does slow work ahead: the first import and the first rendering of text."""
        import av  # noqa: F401

        draw(np.zeros((SIZE, SIZE, 3), np.uint8), Caption("", 1, 1, 0))

    def add(self, image: np.ndarray, times: int = 1) -> None:
        """uint8 [H, W, 3], even sizes."""
        import av

        if self._opened is None:
            container = av.open(str(self.path), "w", options={"movflags": "faststart"})
            stream = container.add_stream("libx264", rate=self.rate)
            stream.height, stream.width = image.shape[:2]
            stream.pix_fmt = "yuv420p"
            # One thread: the model needs the cores.
            stream.options = {"preset": "veryfast", "crf": "23", "threads": "1"}
            self._opened = container, stream
        for _ in range(times):
            self._write(*self._opened, av.VideoFrame.from_ndarray(image, format="rgb24"))
            self.frames += 1

    @staticmethod
    def _write(container: OutputContainer, stream: VideoStream, frame: VideoFrame | None) -> None:
        """frame: None for what the encoder still holds."""
        for packet in stream.encode(frame):
            container.mux(packet)

    def close(self) -> None:
        if self._opened is not None:
            self._write(*self._opened, None)
            self._opened[0].close()
            self._opened = None
