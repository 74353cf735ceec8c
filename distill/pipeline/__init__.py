"""The stages from images to a report."""
