"""Vision-language-action (VLA) models as ROS 2 nodes."""

import os
import sys

# OpenMP's threads wait for each other by spinning; with a busy neighbour on the same cores that
# makes a model 10 to 100 times slower. Read when PyTorch is imported, so it must be set before.
TOO_LATE = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
