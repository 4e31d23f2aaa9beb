"""Training networks: a recipe and its loop, and what a teacher adds."""
