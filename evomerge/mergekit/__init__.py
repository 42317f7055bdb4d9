"""mergekit's YAML: recipes written as it, its files read. mergekit itself is never imported."""
