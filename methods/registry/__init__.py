"""Names: what is registered, how it is spelled, and the hash of its source."""
