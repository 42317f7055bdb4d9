"""The project's own sampler: an iterative surrogate search that knows how noisy its scores are."""
