"""The parts of the accuracy suite that its numbers rest on: splits that do not leak, labels, ranks, intervals."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

SUITE = Path(__file__).parents[2] / "benchmarks/accuracy"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of the suite, which is a folder of scripts."""
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module


def make_examples(labelled: ModuleType, count: int, *, per_group: int) -> list[Any]:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(count, 4, 4, 3), dtype=np.uint8)
    return [labelled.Example(Image.fromarray(each), "a", str(i // per_group)) for i, each in enumerate(pixels)]


def test_no_group_is_in_two_splits_and_sizes_are_kept(suite: Any) -> None:
    labelled = suite("labelled")
    made = make_examples(labelled, 100, per_group=3)
    parts = labelled.split(made, (60, 20, 20), seed=0)
    groups = [{each.group for each in part} for part in parts]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert all(size - 3 < len(part) <= size for part, size in zip(parts, (60, 20, 20), strict=True))


def test_a_split_depends_on_its_seed_alone(suite: Any) -> None:
    labelled = suite("labelled")
    made = make_examples(labelled, 40, per_group=1)
    first, again, other = (labelled.split(made, (20, 10, 10), seed=seed) for seed in (0, 0, 1))
    assert [[each.group for each in part] for part in first] == [[each.group for each in part] for part in again]
    assert [each.group for each in first[0]] != [each.group for each in other[0]]


def test_every_split_has_each_class_in_its_share(suite: Any) -> None:
    labelled = suite("labelled")
    made = make_examples(labelled, 100, per_group=2)
    made = [replace(each, label="rare" if i < 10 else "usual") for i, each in enumerate(made)]
    parts = labelled.split(made, (50, 20, 10), seed=0)
    assert [Counter(each.label for each in part) for part in parts] == [
        {"usual": 45, "rare": 5},
        {"usual": 18, "rare": 2},
        {"usual": 9, "rare": 1},
    ]


def test_the_same_pixels_under_two_labels_are_left_out(suite: Any) -> None:
    labelled = suite("labelled")
    made = make_examples(labelled, 3, per_group=1)
    assert labelled.unique([*made, replace(made[1], label="b")]) == [made[0], made[2]]


def test_emoji_that_differ_by_sex_have_one_meaning(suite: Any) -> None:
    meaning = suite("pictures")._meaning
    farmer = {meaning(f"{person}-200D-1F33E") for person in ("1F468", "1F469", "1F9D1")}
    assert farmer == {"1F9D1-1F33E"}
    assert meaning("1F3C3-200D-2640-FE0F-200D-27A1-FE0F") == meaning("1F3C3") == "1F3C3"
    assert suite("generated")._base("É") == suite("generated")._base("e") == "e"


def test_pictures_of_the_same_pixels_are_kept_once(suite: Any) -> None:
    labelled = suite("labelled")
    made = make_examples(labelled, 5, per_group=1)
    assert labelled.unique([*made, *made]) == made
    flat, square = (labelled.Example(Image.new("RGB", size), "a", "0") for size in ((2, 8), (4, 4)))
    assert len(labelled.unique([flat, square])) == 2


@pytest.mark.parametrize(
    ("available", "sizes"), [(5000, (800, 200, 2000)), (1500, (800, 200, 500)), (100, (60, 20, 20))]
)
def test_split_sizes(suite: Any, available: int, sizes: tuple[int, int, int]) -> None:
    assert suite("prepare").split_sizes(available) == sizes


@pytest.mark.parametrize("shape", ["ellipse", "rectangle", "rhombus"])
def test_half_a_turn_changes_neither_a_sprite_nor_its_label(suite: Any, shape: str) -> None:
    generated = suite("generated")
    for angle in (0.1, 1.3, 2.9):
        here = np.array(generated.outline(shape, x=0.4, y=0.6, size=0.2, angle=angle))
        turned = np.array(generated.outline(shape, x=0.4, y=0.6, size=0.2, angle=angle + np.pi))
        assert {tuple(point) for point in here.round(9)} == {tuple(point) for point in turned.round(9)}
        assert generated.angle_of(angle) == generated.angle_of(angle + np.pi)
        quarter = np.array(generated.outline(shape, x=0.4, y=0.6, size=0.2, angle=angle + np.pi / 2))
        assert {tuple(point) for point in here.round(9)} != {tuple(point) for point in quarter.round(9)}


def test_a_sprite_lies_at_its_angle_and_place(suite: Any) -> None:
    generated = suite("generated")
    level = np.array(generated.outline("rectangle", x=0.5, y=0.5, size=0.2, angle=0.0))
    assert np.ptp(level[:, 0]) > np.ptp(level[:, 1])
    # The picture's second axis points down: an angle of 45° rises to the right.
    rising = np.array(generated.outline("rhombus", x=0.5, y=0.5, size=0.2, angle=np.pi / 4))
    right = rising[rising[:, 0].argmax()]
    assert right[1] < 0.5
    assert [generated.place_of(x) for x in (0.2, 0.21, 0.5, 0.8)] == [0, 0, 8, 15]
    assert [generated.angle_of(angle) for angle in (0.0, np.pi / 8 + 1e-9, np.pi - 1e-9)] == [0, 1, 7]


def test_things_in_a_scene_keep_their_distance(suite: Any) -> None:
    generated = suite("generated")
    generator = np.random.default_rng(0)
    for count in generated.COUNTS:
        centres = np.array(generated._centres(count, generator))
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 10 * np.eye(count)
        assert len(centres) == count
        assert distances.min() > 1.3


def test_every_task_of_the_sweeps_is_prepared_in_its_group(suite: Any) -> None:
    from sensitune.sweeps import SweepConfig

    tasks = suite("prepare").TASKS
    for path in SUITE.glob("*.yaml"):
        for group, names in SweepConfig.from_yaml(path).groups.items():
            assert {tasks[name].group for name in names} == {group}, path


def test_mean_ranks_share_ties_and_use_what_all_have(suite: Any) -> None:
    ranks = suite("statistics_of_runs").mean_ranks(
        {
            "a": {("x", 0): 0.9, ("y", 0): 0.5, ("z", 0): 0.1},
            "b": {("x", 0): 0.8, ("y", 0): 0.5},
            "c": {("x", 0): 0.7, ("y", 0): 0.6},
        }
    )
    assert ranks == {"a": (1 + 2.5) / 2, "b": (2 + 2.5) / 2, "c": (3 + 1) / 2}


def test_the_paired_difference_is_the_mean_over_tasks_of_the_mean_over_seeds(suite: Any) -> None:
    ours = {("x", 0): 0.9, ("x", 1): 0.7, ("y", 0): 0.5}
    theirs = {("x", 0): 0.8, ("x", 1): 0.7, ("y", 0): 0.2, ("w", 0): 0.0}
    found = suite("statistics_of_runs").paired(ours, theirs)
    assert found.difference == pytest.approx((0.05 + 0.3) / 2)
    assert (found.num_tasks, found.num_pairs) == (2, 3)
    assert 0.0 <= found.low <= found.difference <= found.high <= 0.3 + 1e-9


def test_an_interval_covers_the_truth_about_as_often_as_it_says(suite: Any) -> None:
    paired = suite("statistics_of_runs").paired
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        effects = generator.normal(0.02, 0.03, size=12)
        ours = {
            (str(task), run): effect + generator.normal(0, 0.02)
            for task, effect in enumerate(effects)
            for run in range(3)
        }
        found = paired(ours, dict.fromkeys(ours, 0.0), resamples=500)
        covered += found.low <= 0.02 <= found.high
    assert 85 <= covered <= 100


def test_methods_without_a_common_run_have_no_interval(suite: Any) -> None:
    assert suite("statistics_of_runs").paired({("x", 0): 0.5}, {("x", 1): 0.5}) is None


def made_sweep(accuracies: dict[str, dict[int, float]], costs: dict[str, int]) -> Any:
    """What `collect` finds of a sweep with one task."""
    from sensitune.sweeps import RunKey, SweepConfig, SweepResult, SweepRun

    methods = {
        label: {"allocation": {"method": "lora"}, "backbone": {"name": "vit_tiny_patch16_224"}} for label in accuracies
    }
    config = SweepConfig.from_dict({"tasks": {"natural": ["t"]}, "methods": methods})
    runs = tuple(
        SweepRun(RunKey("t", label, {}, seed), accuracy, None, costs[label], 1.0, "folder")
        for label, found in accuracies.items()
        for seed, accuracy in found.items()
    )
    return SweepResult(config, runs, 9, {RunKey("t", "c", {}, 1): "The loss must stay finite."}, {})


def test_tasks_can_be_left_out(suite: Any) -> None:
    report = suite("report")
    sweep = made_sweep({"a": {0: 0.5}}, {"a": 100})
    config = replace(sweep.config, tasks={"natural": ("t", "u")})
    sweep = replace(
        sweep,
        config=config,
        runs=(*sweep.runs, replace(sweep.runs[0], key=replace(sweep.runs[0].key, task="u"))),
        num_runs=2,
    )
    left = report.without_tasks(sweep, ["u"])
    assert [run.key.task for run in left.runs] == list(left.config.sources) == ["t"]
    assert left.num_runs == 1
    with pytest.raises(ValueError, match=r"The sweep has no task 'v'. It has: t, u"):
        report.without_tasks(sweep, ["v"])


def test_ranks_are_among_the_methods_that_have_all_runs(suite: Any) -> None:
    report = suite("report")
    found = {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.6, 1: 0.4}, "c": {0: 0.9}}
    summary = report.summarise(made_sweep(found, dict.fromkeys(found, 100)), ["a"])
    assert [each["mean_rank"] for each in summary["methods"]] == [1.5, 1.5, None]
    assert summary["ranked_on"] == 2
    page = report.markdown(summary, ["a"])
    assert "| c | 100 | – | 90.0 | 90.0 | – |" in page
    assert "mean over 2 task-seed pairs, among the methods that have run all of them (–: has not)" in page
    assert "Without a result, left out: t/c/plain/seed1." in page


def test_each_of_several_ours_has_intervals_against_what_costs_as_much(suite: Any) -> None:
    report = suite("report")
    found = {"a": {0: 0.5}, "b": {0: 0.6}, "c": {0: 0.9}}
    summary = report.summarise(made_sweep(found, {"a": 100, "b": 101, "c": 103}), ["b", "a"])
    assert [each["equal_cost"] for each in summary["methods"]] == [True, True, True]
    first, second = report.markdown(summary, ["b", "a"]).split("Paired difference, ")[1:]
    assert first.startswith("b minus the other at equal cost")
    assert "| a | +10.00 |" in first
    assert "| c | -30.00 |" in first
    assert second.startswith("a minus the other at equal cost")
    assert "| b | -10.00 |" in second
    assert "| c |" not in second  # 3 % dearer than a, 2 % than b
    ours, rows = suite("figures").rows_of(summary)
    assert ours == "b"
    assert [row["method"] for row in rows] == ["c", "a"]
