"""Entry points of this package's nodes: see `node_process`."""

from vla_inference.system.interrupts import node_process

robot_sim_node = node_process("vla_sim_bridge.ros.robot.robot_sim_node")
sim_node = node_process("vla_sim_bridge.ros.sim_node")
