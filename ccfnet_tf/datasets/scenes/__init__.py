"""Generated outdoor scenes: a synthetic data set that needs no download."""
