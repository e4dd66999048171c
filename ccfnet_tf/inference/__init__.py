"""From a trained run and an image to labels, difficulty and files."""
