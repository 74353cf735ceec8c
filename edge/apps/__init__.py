"""Phone apps around a program, and their templates."""
