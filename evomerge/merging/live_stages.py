"""The stages of every tensor as the kernel reads them: looked up once, adjusted per candidate."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.draws import stream_key
from evomerge.merging.native import SELECTION, STAGES
from evomerge.merging.operators.operator import TensorContext
from evomerge.merging.survey import Survey
from evomerge.merging.variant import Source, Variant


class LiveStages:
    """Tables of `Selection`s and stages, a row per tensor.

    Those of one variant are kept while only the coefficients change, which is most of a search.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Source]) -> None:
        sources = [read(name) for name in names]
        self._roles = [source.role for source in sources]
        self._shapes = [tuple(source.base.shape) for source in sources]
        self._made_for: Variant | None = None
        self._tables: tuple[NDArray[np.void], NDArray[np.void]] | None = None
        self._survey: Survey | None = None  # the table points into it

    def of(self, variant: Variant, survey: Survey) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Selections `(n_tensors, n_experts)` and stages `(n_tensors,)`."""
        if self._tables is None or variant != self._made_for or survey is not self._survey:
            self._tables = self._make(variant, survey)
            self._made_for, self._survey = variant, survey
        return self._tables

    def _make(self, variant: Variant, survey: Survey) -> tuple[NDArray[np.void], NDArray[np.void]]:
        n = len(variant.experts)
        selections = np.zeros((len(self._roles), n), dtype=SELECTION)
        stages = np.zeros(len(self._roles), dtype=STAGES)
        select = variant.operator.select
        for i, (role, shape) in enumerate(zip(self._roles, self._shapes, strict=True)):
            statistics = survey.of(role.name)
            if not statistics or select is None:  # no expert changes it
                continue
            context: TensorContext = variant.context(role, shape, model=survey.model)
            selector = select(statistics, context)
            stages[i] = (selector.elects, selector.divides, selector.scale, variant.operator.early)
            for k, one in enumerate(selector.selections):
                ranks = 0 if one.ranks is None else one.ranks.data_ptr()
                low, high = stream_key(variant.seed, role.name, k)
                selections[i, k] = (ranks, one.low, one.high, one.floor, one.slope, low, high)
        return selections, stages
