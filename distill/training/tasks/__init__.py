"""The tasks: each has a file of its own and an entry in this table."""

from distill.training.tasks.classification import IMAGE_CLASSIFICATION
from distill.training.tasks.detection import OBJECT_DETECTION
from distill.training.tasks.masked_images import MASKED_IMAGE_MODELING
from distill.training.tasks.segmentation import SEMANTIC_SEGMENTATION

TASKS = {task.name: task for task in (IMAGE_CLASSIFICATION, SEMANTIC_SEGMENTATION, OBJECT_DETECTION, MASKED_IMAGE_MODELING)}
