"""What a process tells while it works: progress, a record to watch, the terminal."""
