"""Devices, machines, and the collectives between them."""
