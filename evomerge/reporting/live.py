"""What the terminal shows while a search runs: progress, hypervolume and front as they grow."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from evomerge.datatypes import Split
from evomerge.history import FrontChange, History, Trial
from evomerge.reporting.rows import (
    baseline_trials,
    best_in_mean,
    front_rows,
    front_trials,
    mean_estimate,
    mean_loss,
)
from evomerge.reporting.terminal import front_table, score_text

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24

N_ROWS = 8
"""Trials of the front that are shown."""

REFRESHES_PER_SECOND = 4

SECONDS_BETWEEN_TABLES = 0.5
"""Making the table of a large front takes milliseconds, and a front can change faster."""


class SearchView:
    """Shows a search on a terminal; elsewhere prints a line whenever the front has changed.

    `update` takes the history after every event and looks only at what is new in it. The screen is
    drawn by a thread of rich from values that `update` has left, never from the history itself.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("evaluations"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            speed_estimate_period=3600,
        )
        self._task = self._progress.add_task("search", total=None)
        self._live: Live | None = None
        self._tally = _Tally()
        self._front: FrontChange | None = None
        self._summary = Text("waiting for the first evaluation", style="dim")
        self._table: RenderableType = Text()
        self._table_is_due = False
        self._table_time = -SECONDS_BETWEEN_TABLES
        self._history: History | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=lambda: Group(self._progress, self._summary, self._table),
                refresh_per_second=REFRESHES_PER_SECOND,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is None:
            return
        if self._history is not None and self._front is not None:
            self._tabulate(self._history)
        self._live.stop()

    def update(self, history: History) -> None:
        """Take in what is new in the history: call it after every event, or after several."""
        self._history = history
        self._tally.take(history)
        old, self._front = self._front, history.front
        changed = self._front is not None and (
            old is None
            or (self._front.trials, self._front.is_provisional) != (old.trials, old.is_provisional)
        )
        if changed and history.started.fidelity is not None:
            self._tally.take_front(history)
        if self._live is None:
            if changed:
                self._print_line(history)
            return
        self._progress.update(self._task, completed=history.n_evaluations, total=history.n_planned)
        self._summary = self._summarise(history)
        self._table_is_due |= changed
        if self._table_is_due and monotonic() - self._table_time >= SECONDS_BETWEEN_TABLES:
            self._tabulate(history)

    def _print_line(self, history: History) -> None:
        assert self._front is not None  # it has just changed
        kind = "provisional front" if self._front.is_provisional else "front"
        self._console.print(
            f"{history.n_evaluations}/{history.n_planned} evaluations, "
            f"hypervolume {self._front.hypervolume:.6g}, {kind} of {len(self._front.trials)}, "
            f"best mean {_mean_text(history, self._tally.best_mean)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _summarise(self, history: History) -> Text:
        tally = self._tally
        text = Text()
        if self._front is not None:
            text.append("hypervolume ", style="dim")
            text.append(f"{self._front.hypervolume:.5g} ", style="bold")
            text.append(sparkline(history.fronts, history.n_evaluations), style="cyan")
            text.append(
                "   provisional front " if self._front.is_provisional else "   front ", "dim"
            )
            text.append(f"{len(self._front.trials)}", style="bold")
        text.append("   pending ", style="dim")
        text.append(str(len(history.pending)))
        text.append("   failures ", style="dim")
        text.append(str(tally.n_failures), style="red" if tally.n_failures else "")
        if history.started.fidelity is not None:
            text.append("   stage ", style="dim")
            text.append(history.stage)
        text.append("\nbest mean ", style="dim")
        text.append(_mean_text(history, tally.best_candidate), style="bold")
        text.append("   best baseline ", style="dim")
        text.append(_mean_text(history, tally.best_baseline))
        return text

    def _tabulate(self, history: History) -> None:
        rows = front_rows(history)
        table = front_table(rows[:N_ROWS], history.objectives)
        if len(rows) > N_ROWS:
            table.title = f"Pareto front (best {N_ROWS} of {len(rows)} by mean)"
        if history.front is not None and history.front.is_provisional:
            table.title = f"{table.title}, provisional"
        self._table = table
        self._table_is_due = False
        self._table_time = monotonic()


def sparkline(fronts: Sequence[FrontChange], n_evaluations: int) -> str:
    """The growth of the hypervolume over evaluations, from the first front on.

    As many characters as `SPARKLINE_WIDTH`, each the volume that was reached by then.
    """
    if not fronts:
        return ""
    first, low, high = fronts[0].n_evaluations, fronts[0].hypervolume, fronts[-1].hypervolume
    characters: list[str] = []
    for i in range(SPARKLINE_WIDTH):
        reached = first + (n_evaluations - first) * i / (SPARKLINE_WIDTH - 1)
        index = bisect_right(fronts, reached, key=lambda front: front.n_evaluations) - 1
        height = (fronts[index].hypervolume - low) / (high - low) if high > low else 0.0
        level = round(min(max(height, 0.0), 1.0) * (len(BLOCKS) - 1))
        characters.append(BLOCKS[level])
    return "".join(characters)


class _Tally:
    """Best means and failures of a growing history, without going through all of it again."""

    def __init__(self) -> None:
        self.best_candidate: Trial | None = None
        self.best_baseline: Trial | None = None
        self.best_mean: Trial | None = None
        self._failed: set[str] = set()
        self._open: dict[str, None] = {}
        self._n_seen = 0

    @property
    def n_failures(self) -> int:
        return len(self._failed)

    def take_front(self, history: History) -> None:
        """With fidelity, the best are those of the front: others may look good by luck."""
        front = front_trials(history)
        candidates = [trial for trial in front if not trial.is_baseline]
        self.best_mean = best_in_mean(front, history.objectives)
        self.best_candidate = best_in_mean(candidates, history.objectives)
        self.best_baseline = best_in_mean(baseline_trials(history), history.objectives)

    def take(self, history: History) -> None:
        """Look at trials that are new or were open when they were last seen."""
        n_new = len(history.trials) - self._n_seen
        self._n_seen += n_new
        self._open.update(dict.fromkeys([*islice(reversed(history.trials), n_new)][::-1]))
        # a trial that has failed may be asked again
        self._open.update({name: None for name, split in history.pending if split is Split.SEARCH})
        for name in list(self._open):
            trial = history.trials[name]
            self._failed.discard(name)
            if trial.failure is not None:
                self._failed.add(name)
            elif trial.search is not None:
                if history.started.fidelity is None:
                    self._compare(trial, history)
            else:
                continue
            del self._open[name]

    def _compare(self, trial: Trial, history: History) -> None:
        def better(best: Trial | None) -> Trial:
            if best is None:
                return trial
            return min(best, trial, key=lambda t: mean_loss(t, history.objectives))

        self.best_mean = better(self.best_mean)
        if trial.is_baseline:
            self.best_baseline = better(self.best_baseline)
        else:
            self.best_candidate = better(self.best_candidate)


class _Rate(ProgressColumn):
    """Evaluations per second, minute or hour, whichever reads as a number above one."""

    def render(self, task: Task) -> Text:
        if task.speed is None:
            return Text("–/s", style="dim")
        for seconds, unit in ((1, "s"), (60, "min")):
            if task.speed * seconds >= 1:
                return Text(f"{task.speed * seconds:.1f}/{unit}", style="dim")
        return Text(f"{task.speed * 3600:.1f}/h", style="dim")


def _mean_text(history: History, trial: Trial | None) -> str:
    mean = None if trial is None else mean_estimate(trial, history.objectives)
    if trial is None or mean is None:
        return "–"
    return f"{score_text(mean.score, mean.standard_error)} ({trial.name})"
