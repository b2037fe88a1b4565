"""From datasets to batches: sampling, decoding, augmentation."""
