"""Merged weights in memory: operators, banks and the in-place executor."""
