"""The studio's node: all that imports rclpy."""
