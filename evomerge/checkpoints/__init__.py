"""Model folders: read lazily, understood, compared, written."""
