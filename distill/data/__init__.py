"""Images: found, split, streamed and changed; the embedded digit scenes."""
