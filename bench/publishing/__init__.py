"""Leaderboards as folders: writing, merging and verifying them."""
