"""The IK node, of commands, and the chunk IK node, of a model's chunks."""
