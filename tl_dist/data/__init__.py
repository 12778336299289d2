"""From a source to batches: the order of examples, augmentation, and the tf.data pipeline."""
