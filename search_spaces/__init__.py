"""What may vary in a merge: maps from the unit cube to recipes."""

SPACES: dict[str, str] = {
    "merge": "search_spaces.merge_space:merge_space",
    "layerwise": "search_spaces.layerwise:LayerwiseSpace",
}
"""Short name -> import path of every search space that comes with evomerge."""
