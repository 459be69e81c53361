"""One writer at a time; a lock ends with its process, and what that left is removed by the next."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lock_holder import Holder

from sensitune import _lock
from sensitune._lock import one_writer
from sensitune.errors import OutputError, RunFolderError


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "PATIENCE", 0.0)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path / "run" / ".lock")
    yield holder
    holder.kill()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def leave_something(folder: Path) -> None:
    """What killed processes leave, and what is nobody's business."""
    (folder / "figures").mkdir(parents=True)
    (folder / ".adapter.0a1b2c3d").mkdir()
    (folder / ".adapter.0a1b2c3d" / "adapter_model.safetensors").write_text("half")
    for name in (".training.json.0123abcd.json", "figures/.map.png.ffffffff.png", "figures/map.png", ".hidden", ".a.b"):
        (folder / name).write_text("x")


KEPT = {"figures", "figures/map.png", ".hidden", ".a.b"}


def test_a_second_process_is_told_who_works_there_and_touches_nothing(holder: Holder, tmp_path: Path) -> None:
    leave_something(tmp_path / "run")
    before = names(tmp_path)
    who = f"run is being worked on by process {holder.process.pid} on {platform.node()}. Wait until it has ended"
    with pytest.raises(RunFolderError, match=who), one_writer(tmp_path / "run"):
        raise AssertionError
    assert names(tmp_path) == before


def test_a_killed_process_holds_nothing_and_what_it_left_is_removed(holder: Holder, tmp_path: Path) -> None:
    leave_something(tmp_path / "run")
    holder.kill()
    with one_writer(tmp_path / "run"):
        assert names(tmp_path / "run") == KEPT | {".lock"}
    assert names(tmp_path / "run") == KEPT


def test_a_dying_process_is_waited_for(holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "PATIENCE", 30.0)
    threading.Timer(0.2, holder.kill).start()
    with one_writer(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"


def test_what_failed_leaves_nothing_either(tmp_path: Path) -> None:
    def work() -> None:
        with one_writer(tmp_path / "run"):
            leave_something(tmp_path / "run")  # as a worker process does that is ended with its parent
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert names(tmp_path / "run") == KEPT


def test_the_folders_below_are_tidied_but_for_those_that_somebody_works_in(tmp_path: Path) -> None:
    for name in ("busy", "killed"):
        leave_something(tmp_path / "sweep" / "runs" / name)
    busy, killed = (Holder(tmp_path / "sweep" / "runs" / name / ".lock") for name in ("busy", "killed"))
    killed.kill()
    try:
        before = names(tmp_path / "sweep" / "runs" / "busy")
        with one_writer(tmp_path / "sweep"):
            pass
        assert names(tmp_path / "sweep" / "runs" / "busy") == before
        assert names(tmp_path / "sweep" / "runs" / "killed") == KEPT
    finally:
        busy.kill()


def test_only_the_folders_named_are_tidied_where_others_are_not_ours(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        leave_something(tmp_path / name)
    before = names(tmp_path / "theirs")
    with one_writer(tmp_path, within=["ours", "missing"]):
        assert names(tmp_path / "ours") == KEPT
    assert names(tmp_path / "theirs") == before


def test_one_thread_may_work_there_as_often_as_it_likes_and_another_not_at_all(tmp_path: Path) -> None:
    refused: list[str] = []

    def intrude() -> None:
        try:
            with one_writer(tmp_path / "run"):
                raise AssertionError
        except RunFolderError as error:
            refused.append(str(error))

    with one_writer(tmp_path / "run"), one_writer(tmp_path / "x" / ".." / "run"):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"another thread of this process, {os.getpid()}," in refused[0]
    with one_writer(tmp_path / "run"):
        pass


def test_a_folder_that_nothing_came_into_goes_again(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == set()
    with one_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").write_text("x")
    assert names(tmp_path) == {"a", "a/kept"}


def test_a_file_has_a_lock_of_its_own_and_its_own_leftovers_alone_are_removed(tmp_path: Path) -> None:
    for name in (".p.csv.01234567.csv", ".q.csv.01234567.csv"):
        (tmp_path / name).write_text("x")
    with one_writer(tmp_path / "p.csv", file=True):
        assert names(tmp_path) == {".p.csv.lock", ".q.csv.01234567.csv"}
    assert names(tmp_path) == {".q.csv.01234567.csv"}
    holder = Holder(tmp_path / ".p.csv.lock")
    try:
        with (
            pytest.raises(RunFolderError, match=r"p\.csv is being worked on"),
            one_writer(tmp_path / "p.csv", file=True),
        ):
            raise AssertionError
    finally:
        holder.kill()


def test_a_file_system_without_locks_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "lockf", no_locks)
    with one_writer(tmp_path / "run"):
        (tmp_path / "run" / "x").write_text("x")
    assert "run cannot be locked on this file system (No locks available). Make sure that no other" in caplog.text
    assert names(tmp_path) == {"run", "run/x"}


def test_a_name_too_long_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with pytest.raises(OutputError) as raised, one_writer(path):
        raise AssertionError
    assert str(raised.value) == f"{path} could not be written: File name too long. Nothing of it is left."


@pytest.mark.parametrize(
    ("options", "said"),
    [("rw,vers=3,nolock,addr=10.0.0.1", "nolock"), ("rw,local_lock=all", "local_lock=all"), ("rw,local_lock=none", "")],
)
def test_a_network_file_system_that_keeps_locks_to_one_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, options: str, said: str
) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    elsewhere = "22 27 0:0 / /elsewhere rw - nfs server:/a rw,nolock"
    mounts.write_text(f"{elsewhere}\n23 27 {number} / / rw,noatime shared:1 - nfs server:/b {options}\n")
    monkeypatch.setattr(_lock, "_MOUNTS", mounts)
    with one_writer(tmp_path / "run"):
        pass
    assert (f"is mounted with `{said}`: other machines do not see" in caplog.text) == bool(said)
    assert bool(caplog.text) == bool(said)
