"""A leaderboard as figures."""
