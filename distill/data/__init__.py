"""Finding, splitting, streaming and augmenting images; the embedded digit scenes."""
