"""What is kept: rows, networks, results.csv, and how files are written."""
