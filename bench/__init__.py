"""The benchmarking application: suites, data, networks, trials, leaderboards."""
