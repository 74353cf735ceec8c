"""The commands that take a checkpoint, a program, or the name of either on the Hub."""
