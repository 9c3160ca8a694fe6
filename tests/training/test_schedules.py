import math
from typing import get_args

import pytest

from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.schedules import KLSchedule, ScheduleKind


def test_constant():
    schedule = KLSchedule("constant", 100, weight=0.4)
    assert [schedule(step) for step in (0, 50, 99)] == [0.4] * 3 and schedule.has_arrived(0)


def test_linear_rises_from_start_within_the_warmup():
    schedule = KLSchedule("linear", 100, start=0.1, warmup=20)
    assert [schedule(0), schedule(10), schedule(20), schedule(99)] == pytest.approx([0.1, 0.55, 1, 1])
    assert [schedule.has_arrived(step) for step in (0, 19, 20, 99)] == [False, False, True, True]


def test_a_weight_that_starts_at_its_end_has_arrived():
    for value in (0.0, 1.0):
        schedule = KLSchedule("linear", 100, weight=value, start=value, warmup=80)
        assert schedule(0) == schedule(50) == value and schedule.has_arrived(0)


def test_a_warmup_below_one_is_a_share_of_the_run():
    assert KLSchedule("linear", 100, warmup=0.2)(10) == KLSchedule("linear", 100, warmup=20)(10) == pytest.approx(0.5)


def test_logistic_is_sentence_vaes_with_its_defaults():
    """timbmg/Sentence-VAE: 1 / (1 + exp(-0.0025 (step - 2500)))."""
    schedule = KLSchedule("logistic", 10_000, warmup=5000)
    for step in (0, 1000, 2500, 4000):
        assert schedule(step) == pytest.approx(1 / (1 + math.exp(-0.0025 * (step - 2500))))
    assert schedule(5000) == 1


def test_cyclical_is_fu_et_al():
    """M cycles, each rising in its first half: beta = min(1, tau / R) with tau the share of the cycle."""
    schedule = KLSchedule("cyclical", 400, cycles=4, warmup=0.5)
    for step in range(400):
        assert schedule(step) == pytest.approx(min(1, (step % 100) / 100 / 0.5))
    assert not schedule.has_arrived(349) and schedule.has_arrived(350) and not schedule.has_arrived(300)
    assert KLSchedule("cyclical", 100, cycles=6)(50) == 0, "in floats 50 % (100 / 6) is just below a whole cycle"


def test_a_cycle_shorter_than_its_warmup_is_refused():
    for name, value in (("cycles", 0), ("weight", -1.0), ("start", -0.1), ("warmup", -1)):
        with pytest.raises(ValueError, match=f"`{name}` of a KL schedule must be at least ., and finite, got {value}"):
            KLSchedule("cyclical", 400, **{name: value})
    with pytest.raises(ValueError, match="`kl_warmup_steps` 100 is as long as a cycle or longer: 400 updates in 4"):
        KLSchedule("cyclical", 400, cycles=4, warmup=100)
    assert KLSchedule("cyclical", 400, cycles=4, warmup=99).has_arrived(399)


def test_a_weight_that_would_fall_is_refused():
    with pytest.raises(ValueError, match="`kl_start` 1 .* `kl_weight` 0.1, where it ends, is below"):
        KLSchedule("linear", 10, weight=0.1, start=1.0)
    assert KLSchedule("constant", 10, weight=0.1, start=1.0)(0) == 0.1


@pytest.mark.parametrize("numbers", [{"weight": math.nan}, {"weight": math.inf}, {"warmup": math.nan}])
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises(ValueError, match="of a KL schedule must be at least 0, and finite, got"):
        KLSchedule("linear", 10, **numbers)


def test_final_weight_other_than_one():
    schedule = KLSchedule("linear", 10, weight=0.5, warmup=10)
    assert schedule(5) == pytest.approx(0.25) and schedule(10) == 0.5


def test_no_warmup_at_all():
    assert KLSchedule("linear", 10, warmup=0)(0) == 1


def test_geometric_is_musicvaes():
    """beta_t = beta_max (1 - r^t), with r the hundredth root in time of the warm-up."""
    rate = 0.99999
    schedule = KLSchedule("geometric", 10**6, weight=0.2, warmup=math.log(0.01) / math.log(rate))
    for step in (0, 1000, 200_000, 900_000):
        assert schedule(step) == pytest.approx(0.2 * (1 - rate**step), abs=1e-9)
    assert not schedule.has_arrived(460_000) and schedule.has_arrived(461_000)
    assert KLSchedule("geometric", 10, weight=0.2, warmup=0)(0) == 0.2


def test_capacity_rises_while_the_weight_stays():
    schedule = KLSchedule("capacity", 100, weight=20, warmup=0.4, capacity=8)
    assert [schedule(step) for step in (0, 10, 99)] == [20, 20, 20]
    assert [schedule.target(step) for step in (0, 10, 20, 40, 99)] == [0, 2, 4, 8, 8]
    assert [schedule.has_arrived(step) for step in (39, 40)] == [False, True]
    assert KLSchedule("linear", 100).target(50) is None


def test_no_kind_is_another_one_and_each_ends_at_its_weight():
    curves = {}
    for kind in get_args(ScheduleKind):
        schedule = KLSchedule(kind, 100, weight=0.8, warmup=0.4, capacity=3.0 * (kind == "capacity"))
        curves[kind] = [(schedule(step), schedule.target(step)) for step in range(100)]
        assert schedule(99) == pytest.approx(0.8, rel=0.01)
    assert len(set(map(tuple, curves.values()))) == len(curves)


@pytest.mark.parametrize(("epochs", "steps"), [("1.1", 55), ("2", 100), ("0.01", 1), ("0.011", 1), ("0.03", 2)])
def test_the_updates_of_a_run_are_those_of_its_epochs(epochs, steps):
    args = parse_recipe(["--num_train_epochs", epochs]).training
    assert KLSchedule.of_run(args, 50).total_steps == steps
