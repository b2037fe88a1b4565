"""The entry point of this package's node: see `node_process`."""

from vla_inference.system.interrupts import node_process

sim_node = node_process("vla_sim_bridge.ros.sim_node")
