"""Running jobs: where they run, in which order, and what is stored of them."""
