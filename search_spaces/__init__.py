"""What may vary in a merge: maps from the unit cube to recipes."""

SPACES: dict[str, str] = {"layerwise": "search_spaces.layerwise:LayerwiseSpace"}
"""Short name -> import path of every search space that comes with evomerge."""
