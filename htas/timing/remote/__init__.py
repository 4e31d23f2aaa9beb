"""Another machine that networks run on: the program sent there, the pipe to it, and what both say to each other."""
