"""Choose hyperparameters on validation data."""
