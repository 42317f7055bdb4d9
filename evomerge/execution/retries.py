"""Which failures are worth another try, and how often: the one table of the executors."""

from evomerge.datatypes import Failure

# Retried on another worker where there is one. What is deterministic is not tried again.
RETRIES: dict[str, int] = {
    "worker_lost": 2,  # the machine's fault, or a candidate that kills its worker: three strikes
    "timeout": 1,  # a hung worker is replaced; a candidate that always hangs must not loop
    "out_of_memory": 1,  # another worker may have more room
    "non_finite": 0,
    "error": 0,
}


def may_retry(failure: Failure, n_attempts: int) -> bool:
    """Whether a job that failed after `n_attempts` tries is tried again."""
    return n_attempts <= RETRIES[failure.kind]
