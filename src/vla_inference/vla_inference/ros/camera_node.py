"""The camera node: publishes a folder, video, camera or stream as topic `image`."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage, Image

from vla_inference.errors import VlaError
from vla_inference.inputs.video_sources import ImageSource, SourceFrame, open_source
from vla_inference.options import option
from vla_inference.ros import diagnostics, qos
from vla_inference.ros.images import rgb_to_compressed, rgb_to_image
from vla_inference.ros.lifecycle import ACTIVE, ManagedNode, spin_node
from vla_inference.ros.parameters import image_transport
from vla_inference.serving.rate_meter import RateMeter
from vla_inference.system.workspace import unexpected


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    source: str = option("", "folder of images, video file, /dev/videoN or rtsp:// address")
    rate: float = option(
        10.0,
        "maximum images per second, also requested from a camera",
        low=0.01,
        high=1000.0,
    )
    loop: bool = option(True, "restart at the end of a folder or file; otherwise the node exits")
    image_transport: str = image_transport()
    frame_id: str = option("camera", "frame of the images")


class CameraNode(ManagedNode):
    """Reads the source in its own thread; a source that fails ends the node with status 2."""

    TASK = "camera"

    def __init__(self, name: str = "camera", **kwargs):
        super().__init__(name, CameraConfig, **kwargs)
        self._config = CameraConfig()
        self.exit_status: int | None = None
        self._source: ImageSource | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._publisher: Publisher | None = None
        self._watch = RateMeter()

    def do_configure(self) -> None:
        self._config = self.read(CameraConfig)
        if not self._config.source:
            raise VlaError("parameter 'source' is empty", "set it to a folder, file or address")
        self._source = self._open()
        kind, topic = Image, "image"
        if self._config.image_transport == "compressed":
            kind, topic = CompressedImage, self.resolve_topic_name("image") + "/compressed"
        self._publisher = self.create_publisher(kind, topic, **qos.overridable(qos.IMAGE_OUTPUT))

    def do_activate(self) -> None:
        self._stop.clear()
        self._source = self._source or self._open()
        self._thread = threading.Thread(target=self._run, args=(self._source,), daemon=True)
        self._thread.start()

    def do_deactivate(self) -> None:
        self._stop.set()
        self._close()
        if self._thread is not None:
            self._thread.join(timeout=2)
            self._thread = None

    def do_cleanup(self) -> None:
        self._close()
        if self._publisher is not None:
            self.destroy_publisher(self._publisher)
            self._publisher = None

    def _open(self) -> ImageSource:
        return open_source(self._config.source, rate=self._config.rate)

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    # -- in the thread ------------------------------------------------------------------------

    def _run(self, source: ImageSource) -> None:
        period, due = 1.0 / self._config.rate, time.monotonic()
        try:
            while not self._stop.is_set():
                for frame in source:
                    if source.live and time.monotonic() < due:
                        continue  # the source is faster than we were asked to be
                    if self._stop.wait(max(0.0, due - time.monotonic())):
                        return
                    self._publish(frame)
                    due = max(due + period, time.monotonic())
                if not self._config.loop or self._stop.is_set():
                    break
                source.close()
                self._source = source = self._open()
        except VlaError as error:
            if not self._stop.is_set():
                self.get_logger().error(f"cannot continue: {error}")
                self.exit_status = 2
            return
        except Exception as error:  # a thread that ends unnoticed would leave a silent node
            if not self._stop.is_set():
                traceback.print_exc()
                what = unexpected(error)
                self.get_logger().error(f"cannot continue: {what}")
                self.exit_status = 1
            return
        if not self._stop.is_set():
            self.exit_status = 0

    def _publish(self, frame: SourceFrame) -> None:
        """Publishes with the current time as the stamp, so that recordings look live."""
        stamp, frame_id = self.get_clock().now().to_msg(), self._config.frame_id
        raw = self._config.image_transport == "raw"
        message = (rgb_to_image if raw else rgb_to_compressed)(frame.image, stamp, frame_id)
        publisher = self._publisher
        if publisher is not None and not self._stop.is_set():
            publisher.publish(message)
            self._watch.add(0.0, time.monotonic())

    # -- health -------------------------------------------------------------------------------

    def diagnose(self) -> diagnostics.Report:
        rate, wanted = self._watch.rate(time.monotonic()), self._config.rate
        values = {"rate [Hz]": f"{rate:.1f}", "source": self._config.source}
        if self.state == ACTIVE and rate < 0.5 * wanted:
            slow = f"{rate:.1f} images per second of {wanted:g}; check the source"
            return diagnostics.WARN, slow, values
        return diagnostics.OK, self.state, values


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(CameraNode, args)


if __name__ == "__main__":
    sys.exit(main())
