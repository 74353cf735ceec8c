"""From images to a small Swin on a phone: data, teacher, distillation, pruning and the report (`python distill/run.py`)."""
