"""The Slurm engine on submitit's executors for this machine, which hand in, queue again and collect as Slurm's."""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from sensitune.errors import ArgumentError, MissingPackageError
from sensitune.runs import RunConfig
from sensitune.sweeps import EngineSettings, JobOutcome
from sensitune.sweeps._jobs import run_job
from sensitune.sweeps.engines import _attempt, _slurm
from sensitune.sweeps.engines._attempt import Origin, attempt_on_node
from sensitune.sweeps.engines._run_jobs import run_jobs
from sensitune.training import read_metrics

submitit = pytest.importorskip("submitit")
ON_SLURM = EngineSettings(engine="slurm", retries=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of run functions, under a name that jobs can import; jobs of this machine, asked for often."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    support = Path(__file__).parents[2] / "support"
    for folder in (support, Path(__file__).parent):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(_slurm, "_CLUSTER", "local")
    monkeypatch.setattr(_slurm, "_POLL_SECONDS", 0.2)
    return importlib.import_module("engine_runs")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit closes its logs late
def test_runs_that_go_well_and_one_that_fails_are_told_and_the_log_of_that_is_kept(
    runs: ModuleType, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_slurm, "_CLUSTER", "debug")  # jobs in this process, one after the other
    jobs = runs.jobs_in(tmp_path, config, ["good", "bug"])
    found: list[JobOutcome] = []
    run_jobs(list(jobs.values()), ON_SLURM, on_done=found.append, run=runs.eventful)
    assert {outcome.key.task: outcome.error for outcome in found} == {"good": None, "bug": "LookupError: no such thing"}
    assert jobs["good"].finished
    assert (tmp_path / "slurm").is_dir()


@pytest.mark.slow
def test_a_preempted_run_is_queued_again_and_goes_on_from_its_last_epoch(
    runs: ModuleType, config: RunConfig, tmp_path: Path
) -> None:
    (job,) = runs.jobs_in(tmp_path, config, ["preempted"]).values()
    found: list[JobOutcome] = []
    run_jobs([job], ON_SLURM, on_done=found.append, run=runs.eventful)
    assert [outcome.error for outcome in found] == [None]
    assert len(runs.attempts(job)) == 2
    assert [row.epoch for row in read_metrics(job.folder / "metrics.jsonl")] == [1, 2, 3]
    assert job.finished
    assert not (tmp_path / "slurm").exists(), "all went well: no logs are kept"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_job_is_handed_in_again_and_one_that_always_dies_says_so(
    runs: ModuleType, config: RunConfig, tmp_path: Path
) -> None:
    jobs = runs.jobs_in(tmp_path, config, ["killed", "hopeless", "bug"])
    found: list[JobOutcome] = []
    run_jobs(list(jobs.values()), ON_SLURM, on_done=found.append, run=runs.eventful)
    errors = {outcome.key.task: outcome.error for outcome in found}
    assert errors["killed"] is None
    assert errors["bug"] == "LookupError: no such thing"
    assert errors["hopeless"] is not None
    assert "Its worker died 2 times" in errors["hopeless"]
    assert f"Its logs are in {tmp_path / 'slurm'}" in errors["hopeless"]
    assert len(runs.attempts(jobs["killed"])) == 2
    assert [row.epoch for row in read_metrics(jobs["killed"].folder / "metrics.jsonl")] == [1, 2, 3]
    assert list((tmp_path / "slurm").glob("*_log.err")), "the logs of what failed are kept"


def test_what_is_reserved_reaches_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm itself is not here: submitit is made to believe in it, and its script is read."""
    monkeypatch.setattr(shutil, "which", lambda name, *_: f"/usr/bin/{name}")
    own = ("partition=long", "account=vision")
    settings = replace(ON_SLURM, workers=3, cpus_per_run=4, gpus_per_run=2, minutes=90, sbatch=own)
    executor = _slurm._executor(submitit, tmp_path, settings, num_jobs=9)._executor
    script = executor._make_submission_file_text("command", "uid")
    for line in ("--time=90", "--cpus-per-task=4", "--gpus-per-node=2", "--partition=long", "--account=vision"):
        assert f"#SBATCH {line}\n" in script
    assert executor.parameters["array_parallelism"] == 3
    assert "#SBATCH --signal=USR2@120\n" in script


def test_a_machine_without_slurm_or_submitit_is_told_what_to_do(
    config: RunConfig, tmp_path: Path, runs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = list(runs.jobs_in(tmp_path, config, ["good"]).values())
    monkeypatch.setattr(_slurm, "_CLUSTER", "slurm")
    with pytest.raises(ArgumentError, match=r"Slurm cannot be used on this machine: Could not detect .*login node"):
        run_jobs(jobs, ON_SLURM, on_done=print)
    with (
        mock.patch.dict("sys.modules", {"submitit": None}),
        pytest.raises(
            MissingPackageError, match=r"needs submitit. Install the extra: pip install 'sensitune\[slurm\]'"
        ),
    ):
        run_jobs(jobs, ON_SLURM, on_done=print)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "slurm", "gpus_per_run": 0.5}, "`gpus_per_run` must be a whole number with Slurm. Got 0.5."),
        ({"sbatch": ("mem=1G",)}, "`sbatch` is Slurm's: choose the engine slurm. Got 'mem=1G'."),
        (
            {"engine": "slurm", "sbatch": ("--exclusive",)},
            "`sbatch` takes NAME=VALUE, such as partition=long. Got '--exclusive'.",
        ),
    ],
)
def test_settings_that_slurm_has_no_use_for_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        EngineSettings(**options)
    assert str(caught.value) == sentence


def test_a_node_with_other_versions_or_without_the_folder_says_so(
    runs: ModuleType, config: RunConfig, tmp_path: Path
) -> None:
    (job,) = runs.jobs_in(tmp_path, config, ["good"]).values()
    here = Origin.here(1)
    unseen = attempt_on_node(run_job, job, here).outcome.error
    assert unseen is not None
    assert f"does not see {job.scores}. Put the sweep's folder on storage" in unseen
    job.scores.mkdir(parents=True)
    older = replace(here, versions={**here.versions, "timm": "0.9"})
    mixed = attempt_on_node(run_job, job, older).outcome.error
    assert mixed == (
        f"The node {_attempt.platform.node()} has timm {here.versions['timm']}, and the sweep has 0.9. Install the "
        "same versions everywhere."
    )
