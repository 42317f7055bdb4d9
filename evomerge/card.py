"""The model card of an exported merge: what it is made of, how it scores, how to make it again."""

import importlib.metadata
from pathlib import Path

import jinja2

from evomerge.config import Config
from evomerge.datatypes import Estimate, Group, Recipe
from evomerge.history import History, Trial
from evomerge.reporting.conclusion import verdict_of
from evomerge.reporting.rows import estimators_text

_TEMPLATE = """\
---
library_name: transformers
{% if hub_ids %}base_model:
{% for path in hub_ids %}- {{ path | tojson }}
{% endfor %}{% endif %}tags:
- merge
- evomerge
---
# Merge of {{ experts | join(", ") }}

A merge of {{ experts | length }} experts into `{{ base }}`, found by
[evomerge](https://pypi.org/project/evomerge/) {{ version }} as trial {{ trial.name }} of a search
over {{ history.n_evaluations }} evaluations. Operator: `{{ recipe.operator }}`, recipe digest
`{{ recipe.digest }}`, complete in `evomerge_recipe.json`.

## Scores

Search items chose this model, so their scores are optimistic; held-out items were never seen by
the search.

| objective | direction | search | held-out | base, held-out |
|---|---|---|---|---|
{% for o in history.objectives -%}
| {{ o.name }} | {{ o.direction }} | {{ score(trial.search, o.name) }} | \
{{ score(trial.held_out, o.name) }} | {{ score(base_trial.held_out, o.name) }} |
{% endfor %}
Score ± standard error (number of items), {{ estimators }}.
{% if verdict %}
Against the best baseline by search items, on held-out items: {{ verdict }}.
{% endif %}

## Coefficients

Mean coefficient of each expert's task vector by place, weighted by parameters.

| expert | {{ places | join(" | ") }} |
|---|{{ "---|" * (places | length) }}
{% for expert, row in rows -%}
| {{ expert }} | {{ row | join(" | ") }} |
{% endfor %}
## Sources

| model | path | content digest |
|---|---|---|
{% for name, path in paths.items() -%}
| {{ name }} | `{{ path }}` | `{{ history.started.model_digests[name] }}` |
{% endfor %}
{{ mergekit }}

The licences of base and experts apply to this model.
"""


def model_card(
    history: History, trial: Trial, recipe: Recipe, config: Config, *, mergekit: str
) -> str:
    """Markdown with the front matter that the Hub reads; `mergekit` says how that makes it."""
    # A local folder's place is nobody else's business: its name is enough.
    paths = {
        name: Path(ref.path).name if Path(ref.path).is_absolute() else ref.path
        for name, ref in {"base": config.base, **config.experts}.items()
    }
    on_hub = [ref.path for ref in (config.base, *config.experts.values())]
    on_hub = [path for path in on_hub if not Path(path).is_absolute()]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    places, rows = coefficients_by_place(recipe, history.started.groups)
    return environment.from_string(_TEMPLATE).render(
        history=history,
        trial=trial,
        base_trial=history.trials.get("base", trial),
        recipe=recipe,
        experts=list(config.experts),
        base=paths["base"],
        hub_ids=on_hub,
        paths=paths,
        places=places,
        rows=[
            (expert, [f"{c:.3f}" for c in row])
            for expert, row in zip(recipe.experts, rows, strict=True)
        ],
        score=_score,
        estimators=estimators_text(history),
        verdict=_verdict(history, trial),
        mergekit=mergekit,
        version=importlib.metadata.version("evomerge"),
    )


def _verdict(history: History, trial: Trial) -> str:
    if trial.is_baseline or trial.held_out is None:
        return ""
    return verdict_of(history, trial).sentence


def _score(estimates: dict[str, Estimate] | None, objective: str) -> str:
    if estimates is None or objective not in estimates:
        return "not evaluated"
    e = estimates[objective]
    return f"{e.score:.4f} ± {e.standard_error:.4f} ({e.n_items})"


def coefficients_by_place(
    recipe: Recipe, groups: tuple[Group, ...]
) -> tuple[list[str], list[list[float]]]:
    """Mean coefficients per expert and place, weighted by parameters.

    Returns:
        The places (`embed`, `0`, `1`, ..., `norm`, `head`) in order of depth, and one row per
        expert, shape `(n_experts, n_places)`.
    """
    places: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        place = group.kind if group.layer is None else str(group.layer)
        places.setdefault(place, []).append(index)
    weights = [group.n_parameters for group in groups]
    rows = [
        [
            sum(weights[i] * row[i] for i in members) / sum(weights[i] for i in members)
            for members in places.values()
        ]
        for row in recipe.coefficients
    ]
    return list(places), rows
