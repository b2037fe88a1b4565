"""rosbag2 and ROS 1 bags as datasets."""
