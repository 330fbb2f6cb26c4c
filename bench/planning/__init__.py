"""From a suite and a request to the list of jobs."""
