"""Entry point of this package's node: see `node_process`."""

from vla_inference.system.interrupts import node_process

studio_node = node_process("vla_studio.ros.node")
