"""Architectures, fitted to a data set."""
