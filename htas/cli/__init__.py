"""The command `htas`: verbs, their arguments, and tables for a terminal."""
