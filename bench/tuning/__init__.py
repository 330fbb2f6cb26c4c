"""Choosing hyperparameters on validation data."""
