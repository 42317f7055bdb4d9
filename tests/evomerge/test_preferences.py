import numpy as np
import pytest

from evomerge.datatypes import Direction, Objective
from evomerge.errors import ConfigError
from evomerge.pareto import aspire, non_dominated
from evomerge.preferences import (
    Knee,
    Levels,
    Order,
    Preference,
    Threshold,
    Weights,
    choose,
    parse_preference,
)

MATH, CHAT = Objective("math"), Objective("chat")
LENGTH = Objective("length", Direction.MINIMIZE)

FRONT = np.array([[0.80, 0.30], [0.70, 0.55], [0.62, 0.60], [0.58, 0.64], [0.40, 0.70]])
ERRORS = np.full(FRONT.shape, 0.03)
TITLES = [f"Trial {i}" for i in range(len(FRONT))]


def taken(text, scores=FRONT, errors=ERRORS, objectives=(MATH, CHAT)):
    return choose(parse_preference(text), scores, errors, objectives, TITLES[: len(scores)])


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("knee", Preference()),
        (" math=2,chat = 1", Preference(rule=Weights({"math": 2.0, "chat": 1.0}))),
        ("reference: math=0.7, chat=.6", Preference(rule=Levels({"math": 0.7, "chat": 0.6}))),
        ("math>=0.6, chat", Preference((Threshold("math", 0.6, True),), Order(("chat",)))),
        ("chat, math", Preference(rule=Order(("chat", "math")))),
        ("kl <= -1e-2", Preference((Threshold("kl", -0.01, False),), Knee())),
        ("kl<=1, math=1", Preference((Threshold("kl", 1.0, False),), Weights({"math": 1.0}))),
        ("a>=1, a<=3, knee", Preference((Threshold("a", 1.0, True), Threshold("a", 3.0, False)))),
    ],
)
def test_every_form_is_read_and_written_back(text, meaning):
    assert parse_preference(text) == meaning
    assert parse_preference(meaning.text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "",
        "math=",
        "math=much",
        "math>0.6",
        "math==1",
        "math=nan",
        "math>=0.6, chat=1, code",
        "knee, chat",
        "reference: math",
        "reference: math>=1",
        "math,,chat",
    ],
)
def test_what_has_no_form_is_refused_with_the_forms(text):
    with pytest.raises(ConfigError, match=r"one of the forms \(knee; math=2, chat=1;"):
        parse_preference(text)


def test_an_objective_stands_once_in_a_role():
    with pytest.raises(ConfigError, match="math is there twice"):
        parse_preference("math=1, math=2")


def test_thresholds_come_first_and_then_the_order():
    assert taken("math>=0.6, chat").row == 2
    assert taken("math>=0.65, chat").row == 1
    assert taken("chat>=0.6, math").row == 2
    assert taken("math>=0.6, chat>=0.5, math").row == 1


def test_a_threshold_met_within_one_standard_error_is_said_so():
    assert taken("math>=0.6, chat").remarks[0] == (
        "math 0.62 ±0.03 meets math>=0.6 within one standard error only"
    )
    assert taken("math>=0.5, chat>=0.5, math", errors=0.1 * ERRORS).remarks == ()
    assert not any("meets" in r for r in taken("math>=0.7, math").remarks)


def test_a_mean_that_is_a_threshold_but_for_rounding_meets_it():
    scores = np.array([[0.1 + 0.2, 0.5], [0.1, 0.9]])
    assert taken("math>=0.30000000000000004, chat", scores, ERRORS[:2]).row == 0
    assert taken("length<=0.3, chat", scores, ERRORS[:2], (LENGTH, CHAT)).row == 1
    only = np.array([[0.1 + 0.2, 0.5]])
    assert taken("length<=0.3, chat", only, ERRORS[:1], (LENGTH, CHAT)).row == 0


def test_thresholds_that_nobody_meets_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"math>=0.9; .*Trial 0 with math 0.8 ±0.03: lower"):
        taken("math>=0.9, chat")
    with pytest.raises(ConfigError, match=r"Trial [12] with math 0\.\d+ ±0.03, chat"):
        taken("math>=0.69, chat>=0.59, chat")


def test_an_order_lets_later_objectives_decide_between_those_that_noise_cannot_tell_apart():
    scores = np.array([[0.700, 0.30], [0.695, 0.50], [0.60, 0.70]])
    assert taken("math, chat", scores, ERRORS[:3]).row == 1
    assert taken("math", scores, ERRORS[:3]).row == 0
    assert taken("math, chat", scores, 0 * ERRORS[:3]).row == 0
    assert taken("math", scores, ERRORS[:3]).remarks == (
        "another one cannot be told from it in math by one standard error",
    )


def test_minimised_objectives_have_thresholds_and_levels_in_their_own_units():
    scores = np.array([[0.8, 90.0], [0.7, 50.0], [0.6, 20.0]])
    of = (MATH, LENGTH)
    assert taken("length<=50, math", scores, 0 * ERRORS[:3], of).row == 1
    assert taken("length", scores, 0 * ERRORS[:3], of).row == 2
    assert taken("reference: math=0.79, length=85", scores, 0 * ERRORS[:3], of).row == 0
    with pytest.raises(ConfigError, match=r"less length is better: write length<=50"):
        taken("length>=50, math", scores, 0 * ERRORS[:3], of)
    with pytest.raises(ConfigError, match=r"more math is better: write math>=0.5"):
        taken("math<=0.5", scores, 0 * ERRORS[:3], of)


def test_a_reference_beyond_reach_is_missed_evenly_and_one_within_reach_is_surpassed():
    missed = taken("reference: math=0.75, chat=0.6", errors=0.1 * ERRORS)
    assert missed.row == 1
    assert missed.remarks == (
        "math 0.7 ±0.003 misses math>=0.75",
        "chat 0.55 ±0.003 misses chat>=0.6",
    )
    surpassed = taken("reference: math=0.5, chat=0.4", errors=0.1 * ERRORS)
    assert surpassed.row in (1, 2)
    assert surpassed.remarks == ()
    assert taken("reference: chat=0.99").row == 4


def test_every_reference_gives_a_point_of_the_front_whatever_the_units():
    rng = np.random.default_rng(2)
    losses = rng.normal(size=(40, 3))
    front = non_dominated(losses)
    for levels in rng.normal(size=(20, 3)):
        row = aspire(losses, levels.tolist())
        assert front[row]
        assert aspire(losses * [1e3, 1e-3, 1.0], (levels * [1e3, 1e-3, 1.0]).tolist()) == row
    row = aspire(losses, [None, 0.0, None])
    assert losses[row, 1] == losses[:, 1].min()
    assert aspire([[1.0, 2.0]], [0.0, None]) == 0
    with pytest.raises(ConfigError, match="one at least"):
        aspire(losses, [None, None, None])


def test_weights_and_knee_choose_among_those_that_meet_the_thresholds():
    assert taken("chat=1").row == 4
    assert taken("math>=0.5, chat=1").row == 3
    assert taken("math>=0.6, knee").row == 1
    assert taken("knee").row == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("speed=1", "speed is none: it has math, chat"),
        ("math>=0.5, speed", "speed is none"),
        ("math=0", "at least 0 and one above 0"),
        ("math=-1, chat=2", "at least 0 and one above 0"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        taken(text)
