"""Image sources: a folder, a video file, a camera or a stream.

    for frame in open_source("/dev/video0"):
        chunk = policy.predict_action(frame.image, instruction="...")

Live sources hand out the newest image and drop what came in between; recorded ones hand out
every image, as fast as they are asked.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.errors import DataError
from vla_inference.inputs.image_files import SUFFIXES, read_image
from vla_inference.system.latest_value import LatestValue

TIMEOUT = 10.0  # seconds a camera or stream may stay silent
STREAM = re.compile(r"(rtsps?|rtmp|https?|udp|tcp)://.+", re.DOTALL)
CAMERA = re.compile(r"/dev/video\d+")


@dataclass(frozen=True)
class SourceFrame:
    """An image, uint8 [H, W, 3] RGB.

    stamp: seconds since the epoch of a live source, since the beginning of a recorded one.
    name: the file's name in a folder, else the frame's number.
    """

    stamp: float
    image: np.ndarray
    name: str


class ImageSource:
    """Iterate to get frames; `close` (or leaving a `with`) ends the iteration from any thread."""

    live = False

    def __init__(self, address: str):
        self.address = address

    def __iter__(self) -> Iterator[SourceFrame]:
        raise NotImplementedError

    def close(self) -> None: ...

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class FolderSource(ImageSource):
    """The images of a folder in order of name, or a single one."""

    def __init__(self, path: Path, rate: float | None = None):
        super().__init__(str(path))
        self.period = 1.0 / (rate or 10.0)
        self.files = [path] if path.is_file() else self._images(path)

    @staticmethod
    def _images(folder: Path) -> list[Path]:
        files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not files:
            raise DataError(f"{folder} has no images", f"known endings: {', '.join(SUFFIXES)}")

        def natural(path: Path) -> list[tuple[int, int | str]]:  # frame2 before frame10
            parts = re.split(r"(\d+)", path.name)
            return [(0, int(p)) if p.isdigit() else (1, p.lower()) for p in parts if p]

        return sorted(files, key=natural)

    def __iter__(self) -> Iterator[SourceFrame]:
        for i, path in enumerate(self.files):
            yield SourceFrame(i * self.period, read_image(path), path.name)


class VideoSource(ImageSource):
    """Anything PyAV opens: a video file, a camera (v4l2) or a network stream."""

    def __init__(
        self,
        address: str,
        *,
        live: bool = False,
        format: str | None = None,
        options: dict[str, str] | None = None,
    ):
        super().__init__(address)
        self.live, self._closed = live, False
        self._latest: LatestValue[SourceFrame | Exception] | None = None
        self._container = self._open(format, options or {})
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{address} has no video in it", "give a file or address with video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def _open(self, format: str | None, options: dict[str, str]) -> Any:
        import av

        # FFmpeg's own log would tell the same a second time, without a remedy.
        av.logging.set_level(av.logging.PANIC)
        try:
            timeout = TIMEOUT if self.live else None
            return av.open(self.address, format=format, options=options, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure("cannot be opened", error) from error

    def _failure(self, what: str, error: Exception) -> DataError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = "it may be damaged or truncated: copy it again"
        if CAMERA.fullmatch(self.address):
            remedy = "check that it is plugged in, readable and in use by nothing else"
        elif self.live:
            remedy = "check the address, the network and that the camera is on"
        return DataError(f"{self.address} {what} ({reason})", remedy)

    def __iter__(self) -> Iterator[SourceFrame]:
        if not self.live:
            yield from self._decode()
            return
        self._latest = latest = LatestValue[Any]()
        if self._closed:
            return
        thread = threading.Thread(target=self._read, args=(latest,), daemon=True)
        thread.start()
        try:
            while not self._closed:
                item = latest.take(TIMEOUT)
                if self._closed:
                    return
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    reason = TimeoutError(f"no image for {TIMEOUT:g} s")
                    raise self._failure("went silent", reason)
                yield item
        finally:
            self._closed = True
            thread.join(timeout=2)

    def _read(self, latest: LatestValue[SourceFrame | Exception]) -> None:
        try:
            for frame in self._decode():
                if self._closed:
                    return
                latest.put(frame)
            latest.put(self._failure("ended", EOFError("no more images come")))
        except Exception as error:  # raised again where the frames are taken out
            latest.put(error)
        finally:
            with contextlib.suppress(Exception):  # a stream that broke may not close
                self._container.close()

    def _decode(self) -> Iterator[SourceFrame]:
        import av

        number = -1
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                if self._closed:
                    return
                image = frame.to_ndarray(format="rgb24")
                if turns := round(getattr(frame, "rotation", 0) / 90) % 4:
                    image = np.ascontiguousarray(np.rot90(image, turns))  # as a phone was held
                rate = float(self._stream.average_rate or 30)
                stamp = number / rate if frame.time is None else float(frame.time)
                yield SourceFrame(time.time() if self.live else stamp, image, str(number))
        except (av.FFmpegError, OSError) as error:
            if self._closed:
                return
            raise self._failure(f"cannot be read after frame {number}", error) from error
        if number < 0 and not self._closed:
            raise self._failure("has no image", EOFError("the video is empty"))

    def close(self) -> None:
        """The container of a live source is closed by the thread that reads it."""
        self._closed = True
        if self._latest is not None:
            self._latest.close()
        else:
            with contextlib.suppress(Exception):  # a file that broke may not close
                self._container.close()


def open_source(
    address: str | Path, *, rate: float | None = None, size: tuple[int, int] | None = None
) -> ImageSource:
    """Open a folder of images, an image, a video file, `/dev/videoN` or a stream's address.

    rate: images per second, asked of a camera and used for the stamps of a folder's images.
    size: width and height asked of a camera.
    """
    text = str(address)
    if rate is not None and not 0 < rate <= 1000:
        raise DataError(f"a rate of {rate} images per second", "give more than 0, at most 1000")
    if CAMERA.fullmatch(text):
        if not Path(text).exists():
            raise DataError(f"there is no camera {text}", "list them with: ls /dev/video*")
        options = {"framerate": f"{rate:g}"} if rate else {}
        if size:
            options["video_size"] = f"{size[0]}x{size[1]}"
        return VideoSource(text, live=True, format="v4l2", options=options)
    if STREAM.fullmatch(text):
        # Over UDP, FFmpeg's default, lost packets smear the image.
        options = {"rtsp_transport": "tcp"} if text.startswith("rtsp") else {}
        return VideoSource(text, live=True, options=options)
    if "://" in text:
        raise DataError(f"unknown kind of address {text}", "give rtsp://, http:// or a path")
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES):
        return FolderSource(path, rate)
    if not path.is_file():
        raise DataError(
            f"there is no source {text!r}",
            "give a folder of images, a video file, /dev/videoN or an rtsp:// address",
        )
    return VideoSource(text)
