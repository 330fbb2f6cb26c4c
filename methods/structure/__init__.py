"""The graph of a network: which channels are removed together, and which weights are on a path."""
