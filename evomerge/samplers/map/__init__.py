"""MAP (arXiv 2406.07529): quadratic surrogates of every objective, searched for a whole front."""
