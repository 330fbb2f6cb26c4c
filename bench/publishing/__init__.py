"""Write, merge and verify leaderboards, which are folders of files."""
