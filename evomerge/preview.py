"""What a run will be, before it starts: models, genes, items, workers, time and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.datatypes import Evaluation, Split
from evomerge.session import Session


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
        Fact(
            "workers",
            f"{workers.count} {workers.executor}, at most "
            f"{_size((n_experts + 2) * facts.model_bytes)} each for weights",
        ),
    ]
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
    n = len(session.baselines) + session.config.budget.evaluations
    total = seconds["total"] * n / session.config.workers.count
    return [
        Fact(
            "candidate",
            f"{seconds['total']:.3f} s: materialize {seconds['materialize']:.4f} s, "
            f"respond {seconds['respond']:.3f} s",
        ),
        Fact("search", f"about {_duration(total)} for {n} evaluations, held-out items apart"),
    ]


def _space(session: Session) -> str:
    dimensions: Sequence[str] = [d.kind for d in session.space.dimensions]
    n_binary = dimensions.count("binary")
    text = f"{len(dimensions) - n_binary} real"
    if n_binary:
        text += f" and {n_binary} binary"
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
