"""Merges with mergekit, in the environment where it is installed; started by the two benchmarks.

    python mergekit_runner.py < jobs.json

`jobs.json` is a list of `{"config": YAML text, "out": folder, "seed": number, "repeats": number,
"threads": number}`; the answer is a line of JSON with the seconds of every merge, of which the
part in mergekit's methods. mergekit is LGPL-3.0: it is called here and nowhere else.
"""

import json
import sys
import time

import mergekit.merge
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions


class Stopwatch:
    """Adds up the time spent in the merge methods themselves."""

    seconds = 0.0

    def around(self, execute):
        """`execute`, timed."""

        def timed(task, **arguments):
            began = time.perf_counter()
            try:
                return execute(task, **arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def main() -> None:
    """Read the jobs, merge, answer."""
    stopwatch = Stopwatch()
    ExecuteMergeMethodTask.execute = stopwatch.around(ExecuteMergeMethodTask.execute)
    for job in json.load(sys.stdin):
        torch.set_num_threads(job.get("threads", 1))
        seconds, kernels = [], []
        for _ in range(job.get("repeats", 1)):
            stopwatch.seconds = 0.0
            config = MergeConfiguration.model_validate(yaml.safe_load(job["config"]))
            began = time.perf_counter()
            mergekit.merge.run_merge(
                config,
                job["out"],
                MergeOptions(random_seed=job.get("seed"), quiet=True, write_model_card=False),
            )
            seconds.append(time.perf_counter() - began)
            kernels.append(stopwatch.seconds)
        sys.stdout.write(json.dumps({"seconds": seconds, "kernels": kernels}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
