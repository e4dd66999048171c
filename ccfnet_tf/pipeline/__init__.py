"""Input pipeline: augmentation, tf.data batches, and conversion between layouts."""
