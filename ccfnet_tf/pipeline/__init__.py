"""From samples to batches: augmentation and tf.data assembly."""
