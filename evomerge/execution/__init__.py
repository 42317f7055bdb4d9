"""Where evaluations happen: in this process or on Ray actors."""

from evomerge.config import WorkersConfig
from evomerge.evaluation import WorkerSetup
from evomerge.protocols import Executor


def start_executor(workers: WorkersConfig, setup: WorkerSetup) -> Executor:
    """The executor that a configuration names, with its workers started.

    Raises:
        EvomergeError: what a worker refused when it started.
        ExecutorError: when workers cannot be started at all.
    """
    if workers.executor == "in_process":
        from evomerge.execution.in_process import InProcessExecutor

        return InProcessExecutor(setup)
    from evomerge.execution.ray_actors import RayExecutor

    return RayExecutor(
        setup,
        count=workers.count,
        gpus=workers.gpus,
        address=workers.address,
        timeout_seconds=workers.timeout_seconds,
    )
