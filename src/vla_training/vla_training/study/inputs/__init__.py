"""Which inputs help a policy: past images, the robot's state, a camera at the wrist."""
