"""From a question (which trial, which items) to a job or to answers that are known already."""

from collections.abc import Mapping
from pathlib import Path

from evomerge.datatypes import Job, Recipe, Split, digest_of
from evomerge.evaluation_cache import EvaluationCache, cache_key
from evomerge.history import History
from evomerge.session import Session

_ALL = "all"


class Questions:
    """The questions of one run; what was answered before, in this run or another, is not asked.

    Args:
        session: The run's models, settings and items.
        history: Of the run; it names the items of each block.
    """

    def __init__(self, session: Session, history: History) -> None:
        self._facts = session.executor.facts
        self._settings = session.settings
        self._history = history
        self._cache = EvaluationCache(
            Path(session.cache) if session.config.reuse_evaluations else None
        )
        self._items: dict[tuple[Split, str | None], tuple[str, ...]] = {}

    def job(self, name: str, recipe: Recipe, digest: str, split: Split, block: str | None) -> Job:
        """What a worker has to do; its key names the recipe, so that no other's result fits."""
        key = "@".join((name, split.value, block or _ALL, digest))
        return Job(key, recipe, split, None if block is None else self._history.blocks[block])

    def known(self, recipe: str, split: Split, block: str | None) -> Mapping[str, str] | None:
        """Packed answers by objective, if the same recipe has answered these items before."""
        return self._cache.get(self._key(recipe, split, block))

    @property
    def damaged(self) -> list[Path]:
        """Files of the cache that were damaged; what they held is made again."""
        return self._cache.damaged

    def keep(self, recipe: str, split: Split, block: str | None, packed: Mapping[str, str]) -> None:
        """Keep answers for this run and others."""
        self._cache.put(self._key(recipe, split, block), packed)

    def remember(
        self, recipe: str, split: Split, block: str | None, packed: Mapping[str, str]
    ) -> None:
        """Keep answers that the journal holds for this run."""
        self._cache.remember(self._key(recipe, split, block), packed)

    def _key(self, recipe: str, split: Split, block: str | None) -> str:
        if (split, block) not in self._items:
            of_split = [items for items in self._facts.items if items.split is split]
            self._items[split, block] = tuple(
                digest_of(
                    list(items.digests)
                    if block is None
                    else [items.digests[i] for i in self._history.blocks[block][number]]
                )
                for number, items in enumerate(of_split)
            )
        return cache_key(
            self._facts.model_digests, self._settings, recipe, self._items[split, block]
        )


def parse_key(key: str) -> tuple[str, Split]:
    """Trial and split of a job's key."""
    name, split, _, _ = key.rsplit("@", 3)
    return name, Split(split)
