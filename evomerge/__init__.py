"""evomerge: search for the best way to merge language models."""

from importlib.metadata import version

__version__ = version("evomerge")
