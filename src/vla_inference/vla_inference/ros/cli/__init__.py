"""Commands that look into a ROS graph, for machines without the `ros2` command.

They take what `ros2 run`, `topic`, `service`, `action`, `param`, `node` and `lifecycle` take, as
far as the documentation uses it.
"""
