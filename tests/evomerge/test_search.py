import pytest

from evomerge.baselines import baselines
from evomerge.config import read_config
from evomerge.datatypes import Split
from evomerge.errors import FuseError, JournalError, RunError
from evomerge.export import export
from evomerge.history import read_history
from evomerge.journal import encode, read_events
from evomerge.search import resume, start

EXPERTS = ["sort", "twice", "last"]


def test_a_run_evaluates_baselines_candidates_and_the_front_on_held_out_items(
    write_config, tmp_path
):
    run = tmp_path / "run"
    history = start(read_config(write_config()), run)
    names = ["base", *(f"expert:{e}" for e in EXPERTS), "uniform_average", "task_arithmetic_0.3"]
    names += ["task_arithmetic_0.4", "ties", "model_stock", "random_delta"]
    assert [t.name for t in history.trials.values() if t.is_baseline] == names
    assert [t.name for t in history.trials.values() if not t.is_baseline] == [
        str(n) for n in range(12)
    ]
    assert history.finished == "budget spent"
    assert history.front is not None
    assert history.front.hypervolume > 0.0
    final = {*names, *history.front.trials}
    assert {t.name for t in history.scored(Split.HELD_OUT)} == final
    estimates = history.trials["base"].held_out
    assert estimates is not None
    assert [e.n_items for e in estimates.values()] == [30, 30, 30]
    # what is on disk tells the same story
    again = read_history(run)
    assert again.trials == history.trials
    assert again.fronts == history.fronts
    search = history.trials["3"].search
    assert search is not None
    answers = again.answers("3", Split.SEARCH, "sort")
    assert answers.items.tolist() == list(range(20))
    assert answers.values.mean() == pytest.approx(search["sort"].score)


def test_hypervolume_never_falls(write_config, tmp_path):
    history = start(read_config(write_config(budget={"evaluations": 20})), tmp_path / "run")
    volumes = [front.hypervolume for front in history.fronts]
    assert volumes == sorted(volumes)


def test_the_same_configuration_gives_the_same_run(write_config, tmp_path):
    config = read_config(write_config())
    first = start(config, tmp_path / "a")
    second = start(config, tmp_path / "b")
    assert [t.u for t in first.trials.values()] == [t.u for t in second.trials.values()]
    assert [t.search for t in first.trials.values()] == [t.search for t in second.trials.values()]


def test_searching_twice_in_one_directory_is_refused_and_touches_nothing(write_config, tmp_path):
    config = read_config(write_config())
    start(config, tmp_path / "run")
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds a run: continue it with `evomerge resume"):
        start(config, tmp_path / "run")
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_refusal_leaves_no_run_behind(write_config, tmp_path):
    from evomerge.errors import EvomergeError

    config = read_config(write_config(base=str(tmp_path / "nowhere")))
    with pytest.raises(EvomergeError):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_larger_budget_continues_as_if_it_had_been_there_from_the_start(write_config, tmp_path):
    short = write_config("short.yaml", sampler="sobol", budget={"evaluations": 5})
    long = write_config("long.yaml", sampler="sobol", budget={"evaluations": 9})
    start(read_config(short), tmp_path / "short")
    history = resume(tmp_path / "short", evaluations=9)
    expected = start(read_config(long), tmp_path / "long")
    assert history.budget == 9
    assert [t.search for t in history.trials.values()] == [
        t.search for t in expected.trials.values()
    ]


def test_resuming_a_finished_run_adds_nothing(write_config, tmp_path):
    start(read_config(write_config(budget={"evaluations": 2})), tmp_path / "run")
    events, _ = read_events(tmp_path / "run" / "journal.jsonl")
    resume(tmp_path / "run")
    assert read_events(tmp_path / "run" / "journal.jsonl")[0] == events


def test_resuming_on_other_models_is_refused(write_config, tmp_path, tiny_zoo):
    import shutil

    expert = tmp_path / "expert"
    shutil.copytree(tiny_zoo.experts["sort"], expert)
    config = write_config(experts={"sort": str(expert)}, budget={"evaluations": 2})
    start(read_config(config), tmp_path / "run")
    shutil.copytree(tiny_zoo.experts["twice"], expert, dirs_exist_ok=True)
    with pytest.raises(RunError, match="the models changed"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("how", "kind"), [("nan", "non_finite"), ("raise", "error"), ("memory", "out_of_memory")]
)
def test_a_bad_candidate_costs_itself_only(write_config, python_objective, tmp_path, how, kind):
    objective = python_objective(
        "misbehave", how=how, when=[3, 12, 13], counter=str(tmp_path / "calls")
    )
    config = write_config(objectives=[objective], budget={"evaluations": 8})
    history = start(read_config(config), tmp_path / "run")
    failed = [t for t in history.trials.values() if t.failure is not None]
    assert [t.failure.kind for t in failed if t.failure] == [kind] * 3
    assert failed[0].is_baseline
    assert history.finished == "budget spent"
    assert history.n_evaluations == history.n_planned
    assert not {t.name for t in failed} & set(history.front.trials if history.front else ())


def test_the_fuse_stops_a_run_in_which_everything_fails(write_config, python_objective, tmp_path):
    objective = python_objective("misbehave", how="raise", when=[], counter=str(tmp_path / "calls"))
    config = write_config(objectives=[objective], fuse=6)
    with pytest.raises(FuseError, match=r"6 evaluations in a row failed.*the user's own bug"):
        start(read_config(config), tmp_path / "run")
    assert read_history(tmp_path / "run").finished == "fuse"


def test_a_constant_objective_is_warned_of(write_config, python_objective, tmp_path):
    objectives = [python_objective("weight_norm"), python_objective("constant")]
    config = write_config(objectives=objectives, budget={"evaluations": 1})
    history = start(read_config(config), tmp_path / "run")
    assert any("constant is 1 for all baselines" in note for note in history.notes)


def test_another_operator_is_searched_with_the_same_baselines(write_config, tmp_path):
    plain = start(read_config(write_config(budget={"evaluations": 0})), tmp_path / "plain")
    space = {"operator": "ties", "prepare": {"density": 0.5}}
    config = write_config(space=space, budget={"evaluations": 3}, sampler="sobol")
    history = start(read_config(config), tmp_path / "ties")
    for name, trial in plain.trials.items():
        assert history.trials[name].search == trial.search
    assert [t.failure for t in history.trials.values()] == [None] * 13
    done = export(tmp_path / "ties", "2", tmp_path / "merged")
    assert done.rescored == {
        name: pytest.approx(e.score) for name, e in (history.trials["2"].search or {}).items()
    }


def test_equal_recipes_are_evaluated_once(write_config, python_objective, tmp_path):
    """The first anchor decodes to the uniform average, which is a baseline."""
    counter = tmp_path / "calls"
    objective = python_objective("misbehave", how="", when=[-1], counter=str(counter))
    config = write_config(
        objectives=[objective],
        sampler="sobol",
        space={"coefficients": {"map": "global"}},
        budget={"evaluations": 4},
    )
    history = start(read_config(config), tmp_path / "run")
    average = history.trials["uniform_average"]
    twins = [t for t in history.trials.values() if t.recipe_digest == average.recipe_digest]
    assert [t.name for t in twins] == ["uniform_average", "0"]
    assert twins[0].search == twins[1].search
    n_distinct = len({t.recipe_digest for t in history.trials.values()})
    n_held_out = len(history.scored(Split.HELD_OUT))
    assert len(counter.read_text()) == n_distinct + n_held_out


def test_baselines_say_what_they_are():
    recipes = baselines(["a", "b"], ["embed", "0.attn.q"], scales=[0.5], seed=4)
    assert recipes["expert:b"].matrix().tolist() == [[0, 0], [1, 1]]
    assert recipes["uniform_average"].matrix().tolist() == [[0.5, 0.5]] * 2
    assert recipes["task_arithmetic_0.5"].digest == recipes["uniform_average"].digest
    assert recipes["random_delta"].operator == "random_delta"
    assert recipes["random_delta"].seed == 4


def test_a_journal_of_another_version_is_refused_in_a_sentence(write_config, tmp_path):
    run = tmp_path / "run"
    start(read_config(write_config(budget={"evaluations": 0})), run)
    events, _ = read_events(run / "journal.jsonl")
    del events[0]["fidelity"]
    (run / "journal.jsonl").write_bytes(encode(events[0]))
    for read in (read_history, resume):
        with pytest.raises(JournalError, match="lacks 'fidelity': use the version"):
            read(run)


def test_a_task_that_asks_otherwise_since_the_start_is_warned_of(write_config, tiny_zoo, tmp_path):
    task = tmp_path / "sort.yaml"
    task.write_text(tiny_zoo.tasks["sort"].read_text())
    objective = {"name": "sort", "lm_eval": str(task), "items": 10, "held_out": 5}
    start(
        read_config(write_config(objectives=[objective], budget={"evaluations": 1})), tmp_path / "r"
    )
    again = resume(tmp_path / "r", evaluations=2)
    assert not [note for note in again.notes if "comparable" in note]
    task.write_text(task.read_text() + "\ntarget_delimiter: '  '\n")
    changed = resume(tmp_path / "r", evaluations=3)
    assert [note for note in changed.notes if "prompts or metrics" in note]
