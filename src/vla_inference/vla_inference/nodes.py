"""The executables of this package's nodes: see `node_process`."""

from vla_inference.interrupts import node_process

camera_node = node_process("vla_inference.camera_node")
command_node = node_process("vla_inference.command_node")
ik_node = node_process("vla_inference.ik_node")
inference_node = node_process("vla_inference.inference_node")
