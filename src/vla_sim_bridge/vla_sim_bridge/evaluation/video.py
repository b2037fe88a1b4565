"""Writes a video of episodes, with a caption below and the outcome at each end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 400  # pixels, the image's width and height
STRIP = 48  # pixels below it
END_FRAMES = 16  # how long an outcome stays
INK, PALE, BACK = (235, 238, 242), (150, 158, 168), (22, 25, 29)
COLOURS = {
    "success": (76, 175, 110),
    "timeout": (214, 96, 77),
    "wrong_order": (201, 119, 209),
    "aborted": (160, 160, 160),
}


@dataclass
class Caption:
    """The text below the image."""

    instruction: str
    episode: int  # from 1
    episodes: int
    step: int
    outcome: str = "running"


def draw(image: np.ndarray, caption: Caption) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3] -> uint8 [SIZE + STRIP, SIZE, 3] with the caption."""
    canvas = Image.new("RGB", (SIZE, SIZE + STRIP), BACK)
    canvas.paste(Image.fromarray(image), (0, 0))
    pen = ImageDraw.Draw(canvas)
    large, small = _font(13), _font(12)
    text = fitted_text(pen, caption.instruction, large, SIZE - 20)
    pen.text((10, SIZE + 6), text, font=large, fill=INK)
    line = f"episode {caption.episode} of {caption.episodes}"
    pen.text((10, SIZE + 27), line, font=small, fill=PALE)
    ended = caption.outcome in COLOURS
    right = f"{caption.outcome}, step {caption.step}" if ended else f"step {caption.step}"
    width = pen.textlength(right, font=small)
    pen.text(
        (SIZE - 10 - width, SIZE + 27), right, font=small, fill=COLOURS.get(caption.outcome, PALE)
    )
    if ended:
        pen.rectangle((0, SIZE, SIZE, SIZE + 2), fill=COLOURS[caption.outcome])
    return np.asarray(canvas)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
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
        self._container = self._stream = None

    def prepare(self) -> None:
        """Does slow work ahead: the first import and the first rendering of text."""
        import av  # noqa: F401

        draw(np.zeros((SIZE, SIZE, 3), np.uint8), Caption("", 1, 1, 0))

    def add(self, image: np.ndarray, times: int = 1) -> None:
        """uint8 [H, W, 3], even sizes."""
        import av

        if self._container is None:
            self._container = av.open(str(self.path), "w", options={"movflags": "faststart"})
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            # One thread: the model needs the cores.
            self._stream.options = {"preset": "veryfast", "crf": "23", "threads": "1"}
        for _ in range(times):
            self._write(av.VideoFrame.from_ndarray(image, format="rgb24"))

    def _write(self, frame) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self.frames += frame is not None

    def close(self) -> None:
        if self._container is not None:
            self._write(None)
            self._container.close()
            self._container = None
