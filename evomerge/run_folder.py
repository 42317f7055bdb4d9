"""The files of a run, as one object: what is where, and which may be deleted.

config.yaml     the configuration as resolved
journal.jsonl   the truth, answers item by item included (journal.py)
lock            who drives the run now
spool/          results not yet in the journal
views/          report and picture: derived, deletable
"""

import os
from dataclasses import dataclass
from pathlib import Path

from evomerge.config import Config, parse
from evomerge.errors import RunError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        """The event log."""
        return self.path / "journal.jsonl"

    @property
    def spool(self) -> Path:
        """Results not yet told."""
        return self.path / "spool"

    @property
    def views(self) -> Path:
        """What can be made again."""
        return self.path / "views"

    @property
    def has_started(self) -> bool:
        """Whether a search has written its first event here."""
        return self.journal.exists() and self.journal.stat().st_size > 0

    def create(self) -> None:
        """Make the folders; refuse a place where a run exists or nothing can be written.

        Raises:
            RunError: in both cases; nothing that was there is touched.
        """
        if self.has_started:
            raise RunError(
                f"a search starts in a new run directory, but {self.path} holds a run: continue it "
                f"with `evomerge resume {self.path}`, or choose another with --run"
            )
        try:
            for folder in (self.spool, self.views):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise RunError(
                f"a run directory must be writable, but {self.path} is not ({error.strerror}): "
                "choose another one with --run"
            ) from error

    def remove_if_empty(self) -> None:
        """Take back `create` after a refusal: remove what holds no results."""
        if self.has_started:
            return
        for file in (self.config, self.journal, self.path / "lock"):
            file.unlink(missing_ok=True)
        for folder in (self.spool, self.views, self.path):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
            RunError: when this is no run directory.
        """
        if not self.config.exists():
            raise RunError(
                f"{self.path} is no run directory: it holds no config.yaml; check the path"
            )
        return parse(
            self.config.read_text(encoding="utf-8"), folder=self.path, name=str(self.config)
        )
