"""RLDS datasets as TFDS stores them, without TensorFlow."""
