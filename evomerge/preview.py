"""What a run will be, before it starts: models, genes, items, workers, time and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.datatypes import Evaluation, Split
from evomerge.fidelity import Schedule
from evomerge.session import Session, estimator_name


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a preview; `warning` lines are what the user should look at."""

    name: str
    text: str
    is_warning: bool = False


def preview(session: Session) -> list[Fact]:
    """What a session found, in the order of reading."""
    facts = session.executor.facts
    config = session.config
    workers = config.workers
    n_experts = len(config.experts)
    base = session.models.base
    lines = [
        Fact("base", f"{base.path.name}: {base.architecture}, {_size(facts.model_bytes)}"),
        *(
            Fact(
                "expert",
                f"{expert.name}: {expert.path.name}, "
                f"task vector norm {facts.norms[expert.name]:.4g}",
            )
            for expert in session.models.experts
        ),
        Fact("space", _space(session)),
        Fact("sampler", f"{session.sampler_target} ({session.sampler_reason})"),
        *(
            Fact(
                "items",
                f"{', '.join(items.objectives)}: {len(items.digests)} {items.split.value}",
            )
            for items in facts.items
        ),
        Fact(
            "evaluations",
            f"{len(session.baselines)} baselines, then {config.budget.evaluations} candidates",
        ),
        Fact("fidelity", _fidelity(session)),
        Fact("estimators", _estimators(session)),
        Fact(
            "workers",
            f"{workers.count} {workers.executor}, at most "
            f"{_size((n_experts + 2) * facts.model_bytes)} each for weights",
        ),
    ]
    lines += [Fact("bank", note) for note in facts.notes]
    no_held_out = [
        name
        for items in facts.items
        if items.split is Split.HELD_OUT and not items.digests
        for name in items.objectives
    ]
    if no_held_out:
        lines.append(
            Fact(
                "warning",
                f"no held-out items for {', '.join(no_held_out)}: final scores will be optimistic",
                is_warning=True,
            )
        )
    lines += [Fact("warning", warning, is_warning=True) for warning in facts.warnings]
    return lines


def cost(session: Session, evaluation: Evaluation) -> list[Fact]:
    """What a candidate costs, from one that was evaluated, and so what the run will."""
    seconds = evaluation.seconds
    budget, n_baselines = session.config.budget.evaluations, len(session.baselines)
    n = n_baselines + budget
    full = seconds["total"]
    pools = _pools(session)
    share = _items_planned(session.schedule, pools, budget, n_baselines) / (n * sum(pools))
    # Only the answers shrink with the items; the weights are written for every rung anew.
    n_merges = n if session.schedule is None else n * _merges_of_one(session.schedule)
    total = (n_merges * (full - seconds["respond"]) + n * share * seconds["respond"]) / (
        session.config.workers.count
    )
    about = f"about {_duration(total)} for {n} evaluations, held-out items apart"
    if session.schedule is not None:
        about += f" ({_duration(n * full / session.config.workers.count)} without fidelity)"
    return [
        Fact(
            "candidate",
            f"{full:.3f} s on all items: materialize {seconds['materialize']:.4f} s, "
            f"respond {seconds['respond']:.3f} s",
        ),
        Fact("search", about),
    ]


def _pools(session: Session) -> list[int]:
    """Search items of each fitness."""
    return [
        len(items.digests) for items in session.executor.facts.items if items.split is Split.SEARCH
    ]


def _items_planned(
    schedule: Schedule | None, pools: Sequence[int], budget: int, n_baselines: int
) -> float:
    """Search items that a run is expected to answer, baselines in."""
    if schedule is None:
        return (budget + n_baselines) * sum(pools)
    return sum(schedule.n_items(n, budget, n_baselines) for n in pools)


def _merges_of_one(schedule: Schedule) -> float:
    """How often a candidate's weights are written, on average, before the contest."""
    return sum(schedule.keep**rung for rung in range(schedule.race + 1))


def _fidelity(session: Session) -> str:
    """The schedule, and what it saves."""
    if session.schedule is None:
        return f"every candidate answers all search items ({session.schedule_reason})"
    schedule, pools = session.schedule, _pools(session)
    budget, n_baselines = session.config.budget.evaluations, len(session.baselines)
    n, full = budget + n_baselines, (budget + n_baselines) * sum(pools)
    planned = _items_planned(schedule, pools, budget, n_baselines)
    rungs = " then ".join(str(count) for count in schedule.counts(max(pools)))
    return (
        f"{rungs} items; {planned / n:.0f} of {sum(pools)} for a trial on average, {planned:.0f} "
        f"in all ({100 * planned / full:.3g} % of full evaluation) ({session.schedule_reason})"
    )


def _estimators(session: Session) -> str:
    """What makes scores of answers."""
    used = session.config.estimators
    reporting = estimator_name(used.reporting, "reporting")
    if session.schedule is None:
        return f"scores by {reporting}"
    return f"ranked by {estimator_name(used.ranking, 'ranking')}, final scores by {reporting}"


def _space(session: Session) -> str:
    dimensions: Sequence[str] = [d.kind for d in session.space.dimensions]
    kinds = ("real", "binary", "categorical")
    counts = [f"{n} {kind}" for kind in kinds if (n := dimensions.count(kind))]
    text = " and ".join(counts)
    return f"{text} genes over {len(session.executor.facts.groups)} groups of tensors"


def _size(n_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
