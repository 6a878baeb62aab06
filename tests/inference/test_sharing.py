"""Many videos: shared by processes, in parts, gone on with; the results are those of one process."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import stnet
from stnet import console
from stnet.errors import ConfigError
from stnet.inference import cli, common_list, run
from stnet.inference.common_list import CommonList, Group
from stnet.inference.folder_lock import FolderLock
from stnet.inference.jobs import Part, largest_first, plan_jobs
from stnet.inference.names import Names, find_names
from stnet.inference.records import Records
from stnet.inference.summary import VideoSummary, write_summary
from stnet.video import VideoInput, open_source
from stnet.video.inputs import BOOKS

ROOT = Path(__file__).resolve().parents[2]
ALONE = Group()


@pytest.fixture
def study(make_clip, tmp_path) -> Path:
    """Four tiny videos in folders of a folder, and one that is none."""
    for number in range(4):
        folder = tmp_path / "study" / f"p{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        make_clip(folder / f"v{number}.mp4", frames=1 + number, height=16, width=24, seed=number)
    (tmp_path / "study" / "p1" / "bad.mp4").write_bytes(b"no video")
    return tmp_path / "study"


def files(folder: Path) -> dict[str, bytes]:
    """All results but videos, without the date, and without the name of the file that the model is of."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = {name: content for name, content in found.items() if not name.startswith(".stnet")}
    return {
        name: re.sub(rb'"(Date|Model|checkpoint)":"[^"]*"', b"", content)
        for name, content in found.items()
        if not name.endswith(("annotated.mp4", ".running"))
    }


def states(folder: Path) -> dict[str, str]:
    with open(folder / "summary.csv", newline="") as table:
        return {row["video"]: row["status"] for row in csv.DictReader(table)}


ALL = {"p0-v0": "ok", "p0-v2": "ok", "p1-bad": "unreadable", "p1-v1": "ok", "p1-v3": "ok"}


class Killed(BaseException):
    """Stands for a signal that no code survives."""


def test_processes_share_a_list_and_go_on_after_one_was_killed(infer, study, monkeypatch, tmp_path):
    assert infer("study", "--output", "one", "--report")[0] == 1
    assert states(tmp_path / "one") == ALL
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    ended = []

    def end(self, taken, row):
        ended.append(row.name)
        if len(ended) == 2:  # its results are whole, and nobody knows
            raise Killed
        note(self, taken, row)

    note = run.VideoRun._note
    monkeypatch.setattr(run.VideoRun, "_note", end)
    with pytest.raises(Killed):
        infer("study", "--output", "two", "--report")
    monkeypatch.setattr(run.VideoRun, "_note", note)
    assert not (tmp_path / "two" / "summary.csv").exists()

    done: list[str] = []
    monkeypatch.setattr(run.VideoRun, "_note", lambda *given: (done.append(given[2].name), note(*given)))
    command = [
        "study",
        "--output",
        "two",
        "--report",
        "--device",
        "cpu",
        "--checkpoint",
        str(tmp_path / "m.safetensors"),
    ]
    statuses = []
    shutil.copy(infer.checkpoint, tmp_path / "m.safetensors")  # the same model in another file
    ranks = [threading.Thread(target=lambda: statuses.append(cli.main(command))) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert statuses == [0, 0]
    assert sorted(done) == sorted(set(ALL) - {ended[0]})
    assert ended[1] in done[-2:]  # where one died comes last; the other rank may still have another in hand
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_processes_of_other_machines_with_the_same_numbers_do_not_meet(infer, study, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    books = tmp_path / "out" / BOOKS
    books.mkdir(parents=True)
    held = FolderLock(books / f"start-0-{os.getpid()}")
    try:
        assert infer("study", "--output", "out", "--no-video")[0] == 0
    finally:
        held.release()


def test_what_is_finished_is_passed_over_unless_it_has_changed(infer, study, make_clip, capsys, tmp_path):
    command = ["study", "--output", "out", "--no-video", "--skip-existing"]
    assert infer(*command)[0] == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("detections.json")}

    def again(*more: str) -> tuple[set[str], str]:
        status, _, err = infer(*command, *more)
        assert status == 1
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("detections.json")}
        changed = {path.parent.name for path in now if now[path] != before.get(path)}
        before.update(now)
        return changed, err

    os.utime(study / "p0" / "v0.mp4", (1, 1))  # another time alone is no change
    changed, err = again()
    assert changed == set() and "4 videos were finished before" in err and states(tmp_path / "out") == ALL
    make_clip(study / "p0" / "v2.mp4", frames=2, height=16, width=24, seed=9)
    (tmp_path / "out" / "p1-v3" / "lesions.csv").unlink()
    changed, err = again()
    assert changed == {"p0-v2", "p1-v3"} and "p0-v2: done again: its file has changed" in err
    changed, err = again("--score-threshold", "0.5")
    assert len(changed) == 4 and "p0-v0: done again: score threshold was 0.4, is 0.5" in err
    other = stnet.load(infer.checkpoint)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    stnet.save(other, infer.checkpoint.with_name("other.safetensors"))
    (tmp_path / "out" / ".stnet" / "p0-v0" / "record.json").write_text('{"row": {"frames": "<x>"}}')
    model = ["--checkpoint", str(infer.checkpoint.with_name("other.safetensors"))]
    assert cli.main([*command, "--score-threshold", "0.5", *model, "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert err.count("done again: made by another model") == 3 and "p0-v0: done again: how its results" in err


def test_parts_are_the_whole(infer, study, tmp_path):
    assert infer("study", "--output", "whole", "--report", "--no-video")[0] == 1
    status, _, err = infer("study", "--output", "parts", "--report", "--no-video", "--part", "2/2")
    assert "5 videos are done; whoever ends last writes summary.csv and the report" in err
    assert not (tmp_path / "parts" / "summary.csv").exists()
    assert infer("study", "--output", "parts", "--report", "--no-video", "--part", "1/2")[0] + status >= 1
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_parts_are_about_equal_and_disjoint(study, tmp_path):
    jobs, missing = plan_jobs(find_names([str(study)], tmp_path / "out"), tmp_path / "out")
    assert missing == [] and len(jobs) == 5
    parts = [Part(number, 3).of(jobs) for number in (1, 2, 3)]
    assert sorted(job.name for part in parts for job in part) == sorted(ALL)
    loads = [sum(job.size for job in part) for part in parts]
    assert max(loads) - min(loads) <= max(job.size for job in jobs)
    assert len([part for part in (Part(n, 9).of(jobs) for n in range(1, 10)) if part]) == 5


def test_other_results_are_replaced_only_when_asked(infer, study, monkeypatch, tmp_path):
    assert infer("study", "--output", "out", "--no-video")[0] == 1
    status, _, err = infer("study", "--output", "out", "--no-video")
    assert status == 2 and "results exist already" in err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    status, _, err = infer("study", "--output", "out", "--no-video", "--score-threshold", "0.6")
    assert status == 2 and "score threshold was 0.4, is 0.6 (and 3 more)" in err and "--skip-existing" in err
    status, _, err = infer("study", "--output", "out", "--overwrite")
    assert status == 2 and "under torchrun" in err
    assert infer("study", "--output", "out", "--no-video")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert "WORLD_SIZE=x" in infer("study")[2]


def test_the_summary_keeps_the_lines_of_other_videos(infer, study, tmp_path):
    for name in ("p0/v0.mp4", "p1/v1.mp4"):
        assert infer(f"study/{name}", "--output", "out", "--no-video")[0] == 0
    assert list(states(tmp_path / "out")) == ["v1", "v0"]
    shutil.rmtree(tmp_path / "out" / "v0")
    assert infer("study/p0/v2.mp4", "--output", "out", "--no-video")[0] == 0
    assert list(states(tmp_path / "out")) == ["v2", "v1"]


def test_lines_about_names_that_no_file_can_have_go(tmp_path):
    write_summary(tmp_path, [VideoSummary(name="a.mp4 b.mp4 " * 30, status="unreadable", problems=())])
    write_summary(tmp_path, [VideoSummary(name="a", status="ok", problems=(), frames=1)])
    assert states(tmp_path) == {"a": "ok"}


def test_progress_counts_videos_without_a_terminal(infer, study, monkeypatch, tmp_path):
    monkeypatch.setattr(console, "PLAIN_INTERVAL_SECONDS", 0.0)
    err = infer("study", "--no-video")[2]
    assert "video 1 of 5: p0-v0: 1 of 1" in err
    assert re.search(r"video 5 of 5, less than a minute left: p1-v3: 4 of 4 .* frames/s", err)


def test_a_list_names_videos(infer, study, tmp_path):
    (tmp_path / "list.txt").write_text("\ufeff# two of them\n\nstudy/p0/v0.mp4\n study/p1/v*.mp4 \n")
    assert infer("@list.txt", "--output", "out", "--no-video")[0] == 0
    assert list(states(tmp_path / "out")) == ["v0", "v1", "v3"]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for name, said in (("@none.txt", "cannot be read"), ("@empty.txt", "names no video")):
        status, _, err = infer(name)
        assert status == 2 and name in err and said in err


def test_a_video_in_other_hands_is_left_to_them(study, tmp_path):
    jobs, _ = plan_jobs(find_names([str(study)], tmp_path / "out"), tmp_path / "out")
    records = Records(tmp_path / "out", {}, ("json",))
    hand = records.folder(jobs[0])
    hand.mkdir(parents=True)
    lock = FolderLock(hand / common_list.CLAIM_NAME)
    pair = Group(rank=0, size=2)
    shared = CommonList(jobs, records, tmp_path / "out", group=pair, order=largest_first, resume=True, tell=print)
    taken = list(shared)
    assert jobs[0].name not in [one.job.name for one in taken] and len(taken) == 4
    sizes = [one.job.size for one in taken]
    assert sizes == sorted(sizes, reverse=True)
    for one in taken:
        one.claim.release()
    lock.release()


def test_a_video_that_cannot_be_claimed_costs_no_other(study, tmp_path):
    jobs, _ = plan_jobs(find_names([str(study)], tmp_path / "out"), tmp_path / "out")
    records = Records(tmp_path / "out", {}, ("json",))
    records.folder(jobs[1]).parent.mkdir(parents=True)
    records.folder(jobs[1]).write_text("in the way, as the folder of another user is")
    shared = CommonList(jobs, records, tmp_path / "out", group=ALONE, order=largest_first, resume=True, tell=print)
    claimed = {taken.job.name: taken.claim is not None for taken in shared}
    assert claimed == {job.name: job != jobs[1] for job in jobs}
    shared.release()


def test_names_of_folders_are_free_and_short_enough(tmp_path):
    names = [BOOKS, ".Summary.csv.running", "a", "A", "\u4e73" * 90, "\u4e73" * 91, "x" * 300]
    videos = [
        VideoInput(name=name, paths=(tmp_path / f"{number}.mp4",), origin="") for number, name in enumerate(names)
    ]
    jobs, _ = plan_jobs(Names(videos=videos), tmp_path)
    assert [job.name for job in jobs[:4]] == [f"{BOOKS}-2", ".Summary.csv.running-2", "a", "A-2"]
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        (job.folder / "annotated.mp4").parent.mkdir()
    assert jobs[4].name.startswith("\u4e73" * 60) and jobs[6].name.startswith("x" * 180)


def test_a_video_whose_process_died_meanwhile_is_taken_at_the_end(study, tmp_path):
    jobs, _ = plan_jobs(find_names([str(study)], tmp_path / "out"), tmp_path / "out")
    records, first = Records(tmp_path / "out", {}, ("json",)), jobs[largest_first(jobs)[0]]
    records.folder(first).mkdir(parents=True)
    lock = FolderLock(records.folder(first) / common_list.CLAIM_NAME)
    shared = CommonList(jobs, records, tmp_path / "out", group=ALONE, order=largest_first, resume=True, tell=print)
    listed = iter(shared)
    names = [next(listed).job.name]
    lock.release()  # as the operating system does
    names += [taken.job.name for taken in listed]
    assert sorted(names) == sorted(ALL) and names[-1] == first.name
    shared.release()


def test_without_locks_the_videos_are_shared_out_in_advance(study, tmp_path, monkeypatch):
    jobs, _ = plan_jobs(find_names([str(study)], tmp_path / "out"), tmp_path / "out")
    monkeypatch.setattr(FolderLock, "_lock", lambda self, handle: setattr(self, "exclusive", False))
    said, names = [], []
    for rank in range(2):
        pair = Group(rank=rank, size=2)
        records = Records(tmp_path / "out", {}, ("json",))
        shared = CommonList(
            jobs, records, tmp_path / "out", group=pair, order=largest_first, resume=True, tell=said.append
        )
        names += [one.job.name for one in shared]
    assert sorted(names) == sorted(ALL) and "has no locks" in said[0]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_three_hundred_videos_on_two_ranks_of_which_one_is_killed(checkpoint, make_clip, tmp_path):
    for number in range(300):
        folder = tmp_path / "study" / f"p{number % 20:02}"
        folder.mkdir(parents=True, exist_ok=True)
        make_clip(folder / f"v{number}.mp4", frames=3 + number % 9, height=32, width=40, seed=number)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    plain = [str(ROOT / "infer.py"), "study", "--checkpoint", str(checkpoint), "--device", "cpu", "--report"]
    common = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}}
    assert subprocess.run([sys.executable, *plain, "--output", "one"], check=False, **common).returncode == 0
    group = subprocess.Popen([*launch, *plain, "--output", "two"], **common)
    while len(list((tmp_path / "two").glob(".stnet/*/record.json"))) < 120:
        assert group.poll() is None
        time.sleep(0.1)
    ranks = subprocess.run(["pgrep", "-P", str(group.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[0]), signal.SIGKILL)
    assert group.wait() == 0
    assert len(states(tmp_path / "two")) == 300
    assert files(tmp_path / "two") == files(tmp_path / "one")
    for path in (tmp_path / "one").glob("*/annotated.mp4"):
        pairs = zip(open_source(path), open_source(tmp_path / "two" / path.parent.name / path.name), strict=True)
        assert all(np.array_equal(one.image, two.image) for one, two in pairs), path
    again = subprocess.run(
        [sys.executable, *plain, "--output", "two", "--skip-existing"], capture_output=True, **common
    )
    assert again.returncode == 0 and b"300 videos were finished before" in again.stderr


def test_folder_of_results_is_no_study(infer, study, tmp_path):
    assert infer("study/p0", "--output", "study/out")[0] == 0
    jobs, _ = plan_jobs(find_names(["."], tmp_path / "other"), tmp_path / "other")
    assert sorted(job.name for job in jobs) == [f"study-{name}" for name in sorted(ALL)]


def test_group_of_the_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Group.from_environment() == ALONE
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="RANK=3, WORLD_SIZE=3"):
        Group.from_environment()
