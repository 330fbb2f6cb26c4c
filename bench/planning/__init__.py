"""Plan a run: from a suite and the user's options to jobs."""
