"""Runs exported networks of every format through the protocol `Segmenter`."""
