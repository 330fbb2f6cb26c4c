"""A leaderboard as one static HTML page."""
