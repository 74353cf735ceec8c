"""Pruning of trained Swins: what matters, what is kept, and what the result may cost."""
