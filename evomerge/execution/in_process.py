"""The executor without processes: one worker here, one job at a time. As real as the cluster."""

from collections import deque

from evomerge.datatypes import Evaluation, Job, WorkerFacts
from evomerge.evaluation import Worker, WorkerSetup


class InProcessExecutor:
    """Evaluates in the driver's own process; jobs run when their result is asked for."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._worker = Worker(setup)
        self._queue: deque[Job] = deque()

    @property
    def facts(self) -> WorkerFacts:
        """What the worker found when it started."""
        return self._worker.facts

    @property
    def n_free(self) -> int:
        """One job at a time."""
        return 0 if self._queue else 1

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def next_done(self, timeout_seconds: float | None = None) -> Evaluation | None:  # noqa: ARG002 - a running call cannot be cut short in its own process
        """Run the next job; None when there is none."""
        return self._worker.evaluate(self._queue.popleft()) if self._queue else None

    def close(self) -> None:
        """Forget what was queued."""
        self._queue.clear()
