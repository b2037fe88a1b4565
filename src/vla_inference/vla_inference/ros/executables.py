"""Entry points of this package's nodes: see `node_process`."""

from vla_inference.system.interrupts import node_process

camera_node = node_process("vla_inference.ros.camera_node")
chunk_ik_node = node_process("vla_inference.ros.ik.chunk_node")
command_node = node_process("vla_inference.ros.command.node")
estimate_node = node_process("vla_inference.ros.estimate.node")
ik_node = node_process("vla_inference.ros.ik.node")
inference_node = node_process("vla_inference.ros.inference.node")
teleop_node = node_process("vla_inference.ros.teleop.node")
