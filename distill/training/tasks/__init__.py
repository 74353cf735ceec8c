"""The tasks: a file and a line of this table each."""

from distill.training.tasks.classification import IMAGE_CLASSIFICATION
from distill.training.tasks.masked_images import MASKED_IMAGE_MODELING
from distill.training.tasks.segmentation import SEMANTIC_SEGMENTATION

TASKS = {task.name: task for task in (IMAGE_CLASSIFICATION, SEMANTIC_SEGMENTATION, MASKED_IMAGE_MODELING)}
