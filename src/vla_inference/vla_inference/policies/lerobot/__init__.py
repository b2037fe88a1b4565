"""What the policy families of LeRobot share: configuration, statistics, flow matching."""
