"""Outdoor scenes drawn by the package: data without a download."""
