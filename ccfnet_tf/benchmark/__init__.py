"""How fast things are, measured by whoever asks."""
