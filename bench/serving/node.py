#!/usr/bin/env python3
"""How long images wait for their chunks while the node serves its model to others as well.

    python bench/serving/node.py [--clients 0 1 4] [--images 200] [--rate 10] [--output node.json]

The inference node runs the shipped model in a process of its own; images come from here, and each
client is another process that asks for one answer after the other over loopback.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep

sys.path.insert(0, str(ROOT / "test"))

TASK = "stack the red block on the green block"
MODEL = ROOT / "models" / "stack-small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--images", type=int, default=200, help="of each run")
    parser.add_argument("--rate", type=float, default=10.0, help="images per second")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--client", help="be a client of this address until stdin closes")
    add_output(parser)
    args = parser.parse_args()
    if args.client:
        be_client(args.client)
    else:
        keep({"rows": [measure(count, args) for count in args.clients]}, args.output)


def measure(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """One node and so many clients."""
    from graphs import domain, processes

    with processes(domain()) as start:
        node = ["-m", "vla_inference.ros.inference.node", "--ros-args", "--log-level", "error"]
        for name, value in (
            ("model", MODEL),
            ("instruction", TASK),
            ("num_threads", 1),
            ("max_same_image", 0.0),
            ("serve_port", args.port),
        ):
            node += ["-p", f"{name}:={value}"]
        start(*node, stdout=subprocess.DEVNULL, stderr=None)
        camera = Camera(domain())
        try:
            camera.meet()
            address = f"ws://127.0.0.1:{args.port}"
            command = [str(Path(__file__).resolve()), "--client", address]
            clients = [start(*command, stdin=subprocess.PIPE) for _ in range(count)]
            for client in clients:
                client.stdout.readline()  # it has had an answer
            waits = camera.run(args.images, args.rate)
            told = [json.loads(client.communicate("")[0]) for client in clients]
        finally:
            camera.close()
    waits.sort()
    return {
        "clients": count,
        "images_per_s": args.rate,
        "images": args.images,
        "answered": len(waits),
        "refused": camera.status.refused,
        "last_refusal": camera.status.last_refusal,
        "wait_ms": {
            "median": round(statistics.median(waits), 1),
            "p95": round(waits[int(0.95 * len(waits))], 1),
            "p99": round(waits[int(0.99 * len(waits))], 1),
        },
        "client_answers_per_s": round(sum(t["answers"] / t["seconds"] for t in told), 1),
        "client_refusals": sum(t["refusals"] for t in told),
    }


class Camera:
    """Publishes images and notes when their chunks come."""

    def __init__(self, domain: int):
        import numpy as np
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image

        from vla_inference.ros import qos
        from vla_msgs.msg import ActionChunk, InferenceStatus

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("camera", context=self.context, enable_rosout=False)
        self.publisher = self.node.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
        self.node.create_subscription(ActionChunk, "action", self._answered, qos.CHUNK)
        self.node.create_subscription(InferenceStatus, "inference/status", self._told, qos.LATCHED)
        self.status = InferenceStatus()
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
        self.sent: dict[tuple[int, int], float] = {}
        self.waits: list[float] = []
        self._ending = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._ending:
            self.executor.spin_once(timeout_sec=0.05)

    def _answered(self, chunk: Any) -> None:
        sent = self.sent.get((chunk.header.stamp.sec, chunk.header.stamp.nanosec))
        if sent is not None:
            self.waits.append(1e3 * (time.monotonic() - sent))

    def _told(self, status: Any) -> None:
        self.status = status

    def publish(self) -> None:
        from vla_inference.ros.images import rgb_to_image

        message = rgb_to_image(self.image, self.node.get_clock().now().to_msg(), "camera")
        stamp = message.header.stamp
        self.sent[stamp.sec, stamp.nanosec] = time.monotonic()
        self.publisher.publish(message)

    def meet(self) -> None:
        end = time.monotonic() + 120
        while not self.waits:
            if time.monotonic() > end:
                sys.exit("the node does not answer")
            self.publish()
            time.sleep(0.2)

    def run(self, images: int, rate: float) -> list[float]:
        """How long each image of a series waited for its chunk [ms]."""
        for number in range(20 + images):  # the first show the node their rate
            if number == 20:
                self.waits, self.sent = [], {}
            self.publish()
            time.sleep(1 / rate)
        time.sleep(1.0)
        return self.waits

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.executor.shutdown()


def be_client(address: str) -> None:
    import numpy as np

    from vla_inference.errors import VlaError
    from vla_inference.policies.registry import load_policy
    from vla_inference.types import Observation

    policy = load_policy(f"openpi:{address}")
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    seen = Observation({"image": image}, TASK)
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    answers = refusals = 0
    begun = time.monotonic()
    while not ending.is_set():
        try:
            policy.act(seen)
            answers += 1
        except VlaError:
            refusals += 1
        if answers + refusals == 1:
            print("begun", flush=True)
    seconds = time.monotonic() - begun
    print(json.dumps({"answers": answers, "refusals": refusals, "seconds": seconds}))
    policy.close()


if __name__ == "__main__":
    main()
