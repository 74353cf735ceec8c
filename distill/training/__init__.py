"""Training with transformers' Trainer: tasks, settings, models, optimisation, progress, fine-tuning."""
