"""The data types, the training loop and the cutting that every method uses."""
