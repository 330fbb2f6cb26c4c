"""The graph of a network: which channels are removed together, which weights are on a path."""
