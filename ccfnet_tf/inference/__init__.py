"""From a trained run and a picture to labels, difficulty and files."""
