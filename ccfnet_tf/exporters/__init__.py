"""A trained network as files without this package or Keras, each proven before it is there."""
