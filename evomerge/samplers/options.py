"""Checks of the options that a user writes under `sampler:`."""

from evomerge.errors import ConfigError


def checked_population(sampler: str, population: object) -> int | None:
    """Return the population if it is left out or a whole number of at least 4.

    Raises:
        ConfigError: it is something else.
    """
    if population is None:
        return None
    if isinstance(population, bool) or not isinstance(population, int) or population < 4:
        raise ConfigError(
            f"the population of {sampler} must be a whole number of at least 4, but got "
            f"{population!r}: leave it out for a default"
        )
    return population


def is_number(value: object) -> bool:
    """Whether a value is a real number (YAML also has words and truth values)."""
    return isinstance(value, int | float) and not isinstance(value, bool)
