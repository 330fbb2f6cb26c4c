"""One job of the benchmark: train a network, prune it, measure it."""
