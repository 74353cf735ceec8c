"""The same model in other engines."""
