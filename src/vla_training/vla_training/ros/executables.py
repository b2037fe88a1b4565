"""Entry points of this package's nodes: see `node_process`."""

from vla_inference.system.interrupts import node_process

record_node = node_process("vla_training.ros.record_node")
training_node = node_process("vla_training.ros.training_node")
validation_node = node_process("vla_training.ros.validation_node")
