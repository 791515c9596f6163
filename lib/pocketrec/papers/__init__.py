"""Measurements of the papers' claims that no training run makes, one file a paper: timings, sizes, distributions."""
