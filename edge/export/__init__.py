"""From a checkpoint to a checked artefact."""
