"""Threads in each of which torch computes alone."""

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@functools.cache
def serial_threads(n_threads: int) -> ThreadPoolExecutor:
    """A pool for many short or order-sensitive operations; made once per size.

    torch's own threads meet after every operation. On a machine that others use too, operations
    of microseconds then wait mostly for each other (measured: ten times slower). And the last
    bits of a matrix product may depend on how many threads shared it; here they never do.
    """
    all_started = threading.Barrier(n_threads + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread takes torch's default when it first asks: now
        torch.set_num_threads(1)  # of this thread, and the default until it is set back below
        all_started.wait()

    n_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="merging", initializer=start)
    for _ in range(n_threads):
        pool.submit(int)
    all_started.wait()
    torch.set_num_threads(n_before)
    return pool


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, computed on as many threads as torch would use.

    At most one result per thread waits to be taken, whatever the number of items.
    """
    n_threads = torch.get_num_threads()
    pool = serial_threads(n_threads)
    started: deque[Future[Result]] = deque()
    for item in items:
        started.append(pool.submit(function, item))
        if len(started) == n_threads:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()
