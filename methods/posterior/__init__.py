"""The Laplace marginal likelihood and its prior."""
