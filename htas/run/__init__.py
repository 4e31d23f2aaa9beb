"""One run: its configuration and folder, and the stages that fill it."""
