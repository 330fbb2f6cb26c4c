"""Run jobs: executors, progress, and storing results."""
