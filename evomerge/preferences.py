"""Which point of a front to take, as a user says it: one small language, and what it means.

    knee                          where giving up a little no longer buys much
    math=2, chat=1                weights: half the loss in math weighs as much as that in chat
    reference: math=.7, chat=.6   aspiration levels: the front's point that serves them best
    math>=0.6, chat               thresholds in score units, then an order of objectives;
                                  after thresholds there may also be weights, or nothing (the knee)

Choices are made by search scores, which have errors: a threshold that is met within one standard
error only is met by luck in one case of six or more, and whoever chose by it is told.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge import pareto
from evomerge.datatypes import Direction, FloatArray, Objective
from evomerge.errors import ConfigError

REFERENCE = "reference:"
KNEE = "knee"


@dataclass(frozen=True, slots=True)
class Knee:
    """Take the knee of what is left."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights by objective; those left out weigh 0, so that only ties are decided by them."""

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Levels:
    """Aspiration levels by objective, in score units."""

    levels: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Order:
    """Objectives, most important first.

    An objective keeps those within one standard error of its best (the rule of Breiman et al. 1984
    for choosing among noisy values), the last one takes its best.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score that must be reached: at least where more is better, else at most."""

    name: str
    value: float
    at_least: bool

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.name}{'>=' if self.at_least else '<='}{self.value:g}"

    def margin(self, score: float) -> float:
        """By how much a score meets it; below 0 it misses it."""
        return score - self.value if self.at_least else self.value - score


@dataclass(frozen=True, slots=True)
class Preference:
    """Thresholds that must be met, and a rule that chooses among those that meet them."""

    thresholds: tuple[Threshold, ...] = ()
    rule: Knee | Weights | Levels | Order = field(default_factory=Knee)

    @property
    def text(self) -> str:
        """As a user would write it."""
        parts = [threshold.text for threshold in self.thresholds]
        match self.rule:
            case Knee():
                parts += [KNEE]
            case Weights(numbers):
                parts += [f"{name}={number:g}" for name, number in numbers.items()]
            case Levels(numbers):
                return f"{REFERENCE} " + ", ".join(f"{n}={v:g}" for n, v in numbers.items())
            case Order(names):
                parts += names
        return ", ".join(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """All objectives that it speaks of."""
        match self.rule:
            case Weights(numbers) | Levels(numbers):
                of_rule = tuple(numbers)
            case Order(names):
                of_rule = names
            case Knee():
                of_rule = ()
        return (*(threshold.name for threshold in self.thresholds), *of_rule)


@dataclass(frozen=True, slots=True)
class Choice:
    """The row that was taken, and what to know about it, one sentence each."""

    row: int
    remarks: tuple[str, ...] = ()


_PART = re.compile(r"(?P<name>[^<>=]+?)\s*(?:(?P<sign>>=|<=|=)\s*(?P<number>[^<>=]+))?")
_FORMS = f"{KNEE}; math=2, chat=1; {REFERENCE} math=0.7, chat=0.6; math>=0.6, chat"


def parse_preference(text: str) -> Preference:
    """What a text means.

    Raises:
        ConfigError: when it has none of the forms above.
    """
    stripped = text.strip()
    is_reference = stripped.startswith(REFERENCE)
    thresholds: list[Threshold] = []
    numbers: dict[str, float] = {}
    order: list[str] = []
    for part in stripped.removeprefix(REFERENCE).split(","):
        name, sign, number = _read(part, text)
        known = order if sign is None else numbers if sign == "=" else ()
        if name in known:
            raise ConfigError(
                f"a preference names an objective once in a role, but {name} is there twice in "
                f"{text!r}: remove one"
            )
        if sign is None:
            order.append(name)
        elif sign == "=":
            numbers[name] = number
        else:
            thresholds.append(Threshold(name, number, at_least=sign == ">="))
    if is_reference:
        if order or thresholds:
            raise _misread(text)
        return Preference(rule=Levels(numbers))
    if (order and numbers) or (KNEE in order and len(order) > 1):
        raise _misread(text)
    if numbers:
        return Preference(tuple(thresholds), Weights(numbers))
    if order and order != [KNEE]:
        return Preference(tuple(thresholds), Order(tuple(order)))
    return Preference(tuple(thresholds), Knee())


def _read(part: str, text: str) -> tuple[str, str | None, float]:
    """Name, sign and number of a part; 0 where it has no number."""
    found = _PART.fullmatch(part.strip())
    if found is None:
        raise _misread(text)
    try:
        number = float(found["number"] or 0.0)
    except ValueError as error:
        raise _misread(text) from error
    if not math.isfinite(number):
        raise _misread(text)
    return found["name"].strip(), found["sign"], number


def _misread(text: str) -> ConfigError:
    return ConfigError(f"a preference has one of the forms ({_FORMS}), but got {text!r}")


def check_preference(preference: Preference, objectives: Sequence[Objective]) -> None:
    """Refuse what cannot be meant with these objectives.

    Raises:
        ConfigError: it names others, or a threshold bounds a score on its good side.
    """
    known = {objective.name: objective for objective in objectives}
    if unknown := sorted(set(preference.names) - set(known)):
        raise ConfigError(
            f"preferences name objectives of the run, but {', '.join(unknown)} is none: "
            f"it has {', '.join(known)}"
        )
    for threshold in preference.thresholds:
        is_more = known[threshold.name].direction is Direction.MAXIMIZE
        if threshold.at_least != is_more:
            raise ConfigError(
                f"a threshold says how good a score must be, but {threshold.text} is the other way "
                f"round, {'more' if is_more else 'less'} {threshold.name} is better: write "
                f"{Threshold(threshold.name, threshold.value, is_more).text}"
            )
    if isinstance(preference.rule, Weights):
        weights = list(preference.rule.weights.values())
        if min(weights) < 0 or max(weights) == 0:
            raise ConfigError(
                f"weights of a preference must be at least 0 and one above 0, but got "
                f"{preference.text}: give larger numbers to what counts more"
            )


def choose(
    preference: Preference,
    scores: FloatArray,
    standard_errors: FloatArray,
    objectives: Sequence[Objective],
    titles: Sequence[str],
) -> Choice:
    """Take a row of a front.

    Args:
        preference: What is wanted.
        scores: `(n_rows, n_objectives)` scores in the objectives' own units, at least one row.
        standard_errors: Of the scores, of the same shape; 0 where one is exact.
        objectives: In the order of the columns.
        titles: Of the rows, for sentences.

    Returns:
        The row, always a non-dominated one of those that meet all thresholds.

    Raises:
        ConfigError: the preference does not fit the objectives, or no row meets the thresholds.
    """
    check_preference(preference, objectives)
    names = [objective.name for objective in objectives]
    columns = [names.index(threshold.name) for threshold in preference.thresholds]
    margins = np.empty((len(scores), len(columns)))
    for k, (threshold, column) in enumerate(zip(preference.thresholds, columns, strict=True)):
        margins[:, k] = [threshold.margin(score) for score in scores[:, column].tolist()]
    # literals are decimal and means are not: 0.6 is met by 3/5
    rows = np.flatnonzero((margins >= -1e-12).all(axis=1))
    if len(rows) == 0:
        raise _unmet(preference, margins, scores, standard_errors, columns, titles)
    signs = np.array([objective.loss(1.0) for objective in objectives])
    remarks: list[str] = []
    losses, errors = signs * scores[rows], standard_errors[rows]
    match preference.rule:
        case Knee():
            place = pareto.knee(losses)
        case Weights(weights):
            place = pareto.prefer(losses, [weights.get(name, 0.0) for name in names])
        case Levels(levels):
            wanted = [levels.get(name) for name in names]
            oriented = [
                None if level is None else float(sign * level)
                for sign, level in zip(signs, wanted, strict=True)
            ]
            place = pareto.aspire(losses, oriented)
            remarks = _about_levels(wanted, scores[rows[place]], errors[place], objectives)
        case Order(order):
            place, remarks = _in_order(losses, errors, [names.index(name) for name in order], names)
    row = int(rows[place])
    met = [
        remark
        for threshold, column in zip(preference.thresholds, columns, strict=True)
        if (remark := doubt(threshold, scores[row, column], standard_errors[row, column]))
    ]
    return Choice(row, (*met, *remarks))


def doubt(threshold: Threshold, score: float, standard_error: float) -> str | None:
    """What to know of a threshold and a score: that it is missed, or met by luck perhaps."""
    shown = f"{threshold.name} {_shown(score, standard_error)}"
    margin = threshold.margin(float(score))
    if margin < -1e-12:
        by = " by less than one standard error" if -margin < standard_error else ""
        return f"{shown} misses {threshold.text}{by}"
    if margin < standard_error:
        return f"{shown} meets {threshold.text} within one standard error only"
    return None


def _in_order(
    losses: FloatArray, errors: FloatArray, order: Sequence[int], names: Sequence[str]
) -> tuple[int, list[str]]:
    """Narrow down by one objective after the other; the place of who is left."""
    left = np.arange(len(losses))
    for column in order[:-1]:
        best = left[np.argmin(losses[left, column])]
        left = left[losses[left, column] <= losses[best, column] + errors[best, column]]
    last = order[-1]
    # whoever is as good in the last one, but dominated, loses
    place = int(left[np.lexsort((losses[left].sum(axis=1), losses[left, last]))[0]])
    gaps = losses[left, last] - losses[place, last]
    near = int((gaps < np.hypot(errors[left, last], errors[place, last])).sum()) - 1
    if near <= 0:
        return place, []
    others = "another one" if near == 1 else f"{near} others"
    return place, [f"{others} cannot be told from it in {names[last]} by one standard error"]


def _about_levels(
    wanted: Sequence[float | None],
    scores: FloatArray,
    errors: FloatArray,
    objectives: Sequence[Objective],
) -> list[str]:
    thresholds = [
        (Threshold(o.name, level, o.direction is Direction.MAXIMIZE), score, error)
        for o, level, score, error in zip(objectives, wanted, scores, errors, strict=True)
        if level is not None
    ]
    return [remark for one in thresholds if (remark := doubt(*one))]


def _unmet(
    preference: Preference,
    margins: FloatArray,
    scores: FloatArray,
    errors: FloatArray,
    columns: Sequence[int],
    titles: Sequence[str],
) -> ConfigError:
    """Says what is possible: the row whose worst miss is smallest, against each one's range."""
    spans = np.ptp(scores[:, columns], axis=0)
    misses = np.maximum(-margins, 0.0) / np.where(spans > 0.0, spans, 1.0)
    nearest = int(np.argmin(misses.max(axis=1)))
    has = ", ".join(
        f"{threshold.name} {_shown(scores[nearest, column], errors[nearest, column])}"
        for threshold, column in zip(preference.thresholds, columns, strict=True)
    )
    wanted = ", ".join(threshold.text for threshold in preference.thresholds)
    return ConfigError(
        f"a preference's thresholds must be met by a trial of the front, but none has {wanted}; "
        f"nearest is {titles[nearest]} with {has}: lower them, or search on"
    )


def _shown(score: float, standard_error: float) -> str:
    return f"{score:.4g}" + (f" ±{standard_error:.2g}" if standard_error > 0 else "")
