import numpy as np
import pytest

from evomerge.journal import read_events
from tests.support.runs import comparable, kill_when_journal_reaches, spawn

N_KILLS = 10

ONE_OF_A_KIND = ("cma_es", "m2n2", "nsga2", "sobol", "surrogate")
"""Replayed with a mean of its own, with items' answers, with a population; without memory;
readmitted. The contract of samplers replays every one."""


def sampler_config(name: str) -> dict[str, object]:
    if name == "cma_es":
        return {"name": name, "weights": {"sort": 1.0, "twice": 1.0, "last": 1.0}, "population": 6}
    return {"name": name, "population": 6} if name == "nsga2" else {"name": name}


FIDELITY = {"first": 4, "contest": 4, "finalists": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "fidelity"), [*((name, "off") for name in ONE_OF_A_KIND), ("nsga2", FIDELITY)]
)
def test_ten_kills_leave_the_journal_of_an_uninterrupted_run(
    sampler, fidelity, write_config, tmp_path
):
    config = write_config(
        sampler=sampler_config(sampler), budget={"evaluations": 20}, fidelity=fidelity
    )
    whole = spawn(config, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    expected, n_bytes = read_events(tmp_path / "whole" / "journal.jsonl")

    killed = tmp_path / "killed"
    rng = np.random.default_rng(len(sampler))
    moments = np.sort(rng.integers(0, n_bytes, N_KILLS))
    n_killed = 0
    for moment in moments:
        process = spawn(config, killed)
        pause = float(rng.uniform(0.0, 0.03))
        n_killed += kill_when_journal_reaches(process, killed / "journal.jsonl", int(moment), pause)
    last = spawn(config, killed)
    last.join()
    assert last.exitcode == 0
    assert n_killed >= N_KILLS - 2  # one near the end may come too late
    events, _ = read_events(killed / "journal.jsonl")
    assert comparable(events) == comparable(expected)
    assert not list((killed / "spool").iterdir())
