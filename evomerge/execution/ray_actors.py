"""The executor on Ray: long-lived actors, one job in flight each; the only importer of Ray.

The queue lives in the driver: when an actor dies, only the job that it was answering is affected.
Results are small (numbers); models are read by each worker from memory-mapped files.
"""

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from evomerge.datatypes import Evaluation, Failure, Job, WorkerFacts
from evomerge.errors import EvomergeError, ExecutorError
from evomerge.evaluation import Worker, WorkerSetup
from evomerge.execution.retries import may_retry

_OBJECT_STORE_BYTES = 100_000_000  # results are small; Ray's default takes a third of the memory
_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_MOST_FAILED_STARTS = 3


class _Actor:
    """A `Worker` that starts when told to, so that its errors come back as they are."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, setup: WorkerSetup) -> WorkerFacts:
        self._worker = Worker(setup)
        return self._worker.facts

    def evaluate(self, job: Job) -> Evaluation:
        if self._worker is None:
            raise RuntimeError("the worker did not start")
        return self._worker.evaluate(job)


@dataclass(slots=True)
class _Slot:
    """One actor's place in the pool; `job` is what it is answering."""

    actor: Any
    start: Any
    is_fresh: bool = True
    job: Job | None = None
    n_attempts: int = 0
    answer: Any = None
    since: float = 0.0


class RayExecutor:
    """A pool of Ray actors.

    Args:
        setup: What every worker gets; paths must be readable on every node.
        count: Number of actors.
        gpus: GPUs per actor, fractions allowed.
        address: A cluster's address (`auto`, `host:port`); None starts Ray on this machine.
        timeout_seconds: An evaluation that takes longer costs its worker, which is replaced.

    Raises:
        ExecutorError: when Ray cannot be reached or lacks the resources.
        EvomergeError: what a worker refused when it started.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        count: int,
        gpus: float = 0.0,
        address: str | None = None,
        timeout_seconds: float = 3600.0,
    ) -> None:
        self._setup = setup
        self._gpus = gpus
        self._timeout_seconds = timeout_seconds
        self._queue: deque[tuple[Job, int]] = deque()
        self._finished: deque[Evaluation] = deque()
        self._n_failed_starts = 0
        self._scratch = tempfile.TemporaryDirectory(prefix="evomerge-ray-")
        try:
            self._connect(address, count)
            began = time.monotonic()
            self._slots = [self._new_slot() for _ in range(count)]
            facts = [self._started(slot) for slot in self._slots]
            self._start_seconds = time.monotonic() - began
        except BaseException:
            self._disconnect()
            raise
        self.facts: WorkerFacts = facts[0]
        self._refuse_different(facts)

    def _connect(self, address: str | None, count: int) -> None:
        # Ray puts the driver's working directory on its workers' path, where a stray fitness.py
        # beside the user would shadow ours: workers get an empty one.
        runtime_env = {"working_dir": self._scratch.name}
        options: dict[str, Any] = {
            "runtime_env": runtime_env,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": False,
        }
        if address is None:
            options |= {
                "num_cpus": count * self._setup.threads,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        else:
            _refuse_unreachable(address)
            options["address"] = address
        # Ray warns that a future version leaves the accelerator variable alone: so do we.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ExecutorError(
                f"the ray executor needs a running Ray, but {address or 'a local one'} does not "
                f"answer ({_one_line(error)}): check the address and RAY_AUTH_TOKEN, or leave "
                "`address` out to start Ray on this machine"
            ) from error
        have = ray.cluster_resources()
        need = {"CPU": float(count * self._setup.threads), "GPU": count * self._gpus}
        for name, amount in need.items():
            if amount > have.get(name, 0.0):
                raise ExecutorError(
                    f"{count} workers need {amount:g} {name}, but Ray has {have.get(name, 0.0):g}: "
                    "lower workers.count, workers.threads or workers.gpus, or add nodes"
                )

    def _new_slot(self) -> _Slot:
        actor_class = ray.remote(_Actor).options(
            num_cpus=self._setup.threads, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
        )
        actor = actor_class.remote()
        return _Slot(actor, actor.start.remote(self._setup))

    def _started(self, slot: _Slot) -> WorkerFacts:
        try:
            facts: WorkerFacts = ray.get(slot.start)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EvomergeError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ExecutorError(f"a worker must start, but it died ({_one_line(error)})") from error
        slot.is_fresh = False
        return facts

    def _refuse_different(self, facts: list[WorkerFacts]) -> None:
        for other in facts[1:]:
            same = (
                other.model_digests == self.facts.model_digests and other.items == self.facts.items
            )
            if not same:
                self.close()
                raise ExecutorError(
                    "all workers see the same models and items, but two nodes differ: "
                    "put models and tasks on shared storage, or copy them again"
                )

    @property
    def n_free(self) -> int:
        """Actors without a job, less what is queued already."""
        return sum(slot.job is None for slot in self._slots) - len(self._queue)

    def submit(self, job: Job) -> None:
        """Hand a job to a free actor, or queue it."""
        self._queue.append((job, 0))
        self._dispatch()

    def next_done(self, timeout_seconds: float | None = None) -> Evaluation | None:
        """The next finished evaluation; lost and hung workers are replaced on the way."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            self._dispatch()
            if self._finished:
                return self._finished.popleft()
            busy = {slot.answer: slot for slot in self._slots if slot.job is not None}
            if not busy:
                return None
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                self._collect(busy[reference])
            self._replace_hung()
            if deadline is not None and time.monotonic() > deadline and not self._finished:
                return None

    def _dispatch(self) -> None:
        for slot in self._slots:
            if slot.job is None and self._queue:
                slot.job, n_attempts = self._queue.popleft()
                slot.n_attempts = n_attempts + 1
                slot.since = time.monotonic()
                slot.answer = slot.actor.evaluate.remote(slot.job)

    def _collect(self, slot: _Slot) -> None:
        try:
            evaluation: Evaluation = ray.get(slot.answer)
        except ray.exceptions.RayTaskError as error:
            # The worker turns a candidate's errors into failures: what still comes is ours, or
            # the spool's disk is full, or a replaced worker did not start.
            if isinstance(error.cause, EvomergeError):
                raise error.cause from None
            if not slot.is_fresh:
                raise
            self._lose(slot, "worker_lost", f"its worker did not start: {_one_line(error)}")
        except ray.exceptions.RayError as error:
            self._lose(slot, "worker_lost", f"its worker died: {_one_line(error)}")
        else:
            self._n_failed_starts = 0
            slot.is_fresh = False
            if evaluation.failure is None:
                self._finish(slot, evaluation)
            else:
                self._fail(slot, evaluation)

    def _replace_hung(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            allowed = self._timeout_seconds + (2 * self._start_seconds if slot.is_fresh else 0.0)
            if slot.job is not None and now - slot.since > allowed:
                message = f"no answer within {self._timeout_seconds:g} seconds"
                self._lose(slot, "timeout", message)

    def _lose(self, slot: _Slot, kind: Literal["worker_lost", "timeout"], message: str) -> None:
        """Replace a slot's actor and decide what becomes of its job."""
        if slot.is_fresh:
            self._n_failed_starts += 1
        if self._n_failed_starts >= _MOST_FAILED_STARTS:
            raise ExecutorError(
                f"lost workers are replaced, but {self._n_failed_starts} in a row did not start "
                f"({message}): look at the nodes, then `evomerge resume`"
            )
        job = slot.job
        assert job is not None  # only a slot with a job can lose it
        ray.kill(slot.actor, no_restart=True)
        fresh = self._new_slot()
        slot.actor, slot.start, slot.is_fresh = fresh.actor, fresh.start, True
        self._fail(slot, Evaluation(job.key, {}, {}, Failure(kind, message)))

    def _fail(self, slot: _Slot, evaluation: Evaluation) -> None:
        job, n_attempts = slot.job, slot.n_attempts
        assert job is not None
        assert evaluation.failure is not None
        if may_retry(evaluation.failure, n_attempts):
            slot.job = None
            # To the end of the queue, and this slot to the end of the pool: another worker's turn.
            self._queue.append((job, n_attempts))
            self._slots.remove(slot)
            self._slots.append(slot)
        else:
            self._finish(slot, evaluation)

    def _finish(self, slot: _Slot, evaluation: Evaluation) -> None:
        slot.job = None
        self._finished.append(evaluation)

    def close(self) -> None:
        """Kill the actors and leave Ray; a local Ray that we started goes down with us."""
        for slot in self._slots:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(slot.actor, no_restart=True)
        self._disconnect()

    def _disconnect(self) -> None:
        ray.shutdown()
        self._scratch.cleanup()


def _refuse_unreachable(address: str) -> None:
    """Ray itself would wait for minutes for a `host:port` that does not answer."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ExecutorError(
            f"workers.address is that of a running Ray, but {address} does not answer ({error}): "
            "check it, or leave `address` out to start Ray on this machine"
        ) from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
