"""The one Trainer: tasks, settings, models, optimisation, progress, fine-tuning."""
