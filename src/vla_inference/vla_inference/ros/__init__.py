"""What every node of ours shares. Only these modules and `*_node.py` files import rclpy."""
