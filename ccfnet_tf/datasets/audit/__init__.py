"""Checks, statistics and cross-validation folds computed from a complete data set."""
