"""What may vary in a merge: maps from the unit cube to recipes."""
