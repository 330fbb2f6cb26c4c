"""Suites, rows and errors: the types that all other packages share."""
