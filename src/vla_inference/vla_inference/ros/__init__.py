"""The nodes and what they share. Only modules in folders named `ros` import rclpy."""
