"""What makes models small: teachers and pruning."""
