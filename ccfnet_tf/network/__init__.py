"""The network: geometry, backbones, heads, and the graph that joins them."""
