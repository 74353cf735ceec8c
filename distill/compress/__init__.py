"""Making models small: teachers and pruning."""
