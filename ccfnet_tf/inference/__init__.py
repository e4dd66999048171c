"""Predicts images and videos with a network, and writes labels and maps to files."""
