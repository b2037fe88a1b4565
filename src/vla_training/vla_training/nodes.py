"""The executables of this package's nodes: see `node_process`."""

from vla_inference.interrupts import node_process

record_node = node_process("vla_training.record_node")
training_node = node_process("vla_training.training_node")
validation_node = node_process("vla_training.validation_node")
