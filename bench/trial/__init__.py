"""One job: train, prune, measure."""
