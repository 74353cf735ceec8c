"""The deploy form: an exact, inference-only rewrite of a model."""
