"""The pipeline: its stages, from images to a report."""
