"""Readers for data set layouts, one module per layout. This package does not import TensorFlow."""
