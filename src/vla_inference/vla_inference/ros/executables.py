"""Entry points of this package's nodes: see `node_process`."""

from vla_inference.system.interrupts import node_process

camera_node = node_process("vla_inference.ros.camera_node")
command_node = node_process("vla_inference.ros.command.node")
ik_node = node_process("vla_inference.ros.ik_node")
inference_node = node_process("vla_inference.ros.inference.node")
