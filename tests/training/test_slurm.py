"""The Slurm scripts, with stand-ins for Slurm's commands and for torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# srun runs what follows its options; scancel reaches the training; torchrun saves and leaves on TERM, as train.py does.
COMMANDS = {
    "scontrol": 'echo "scontrol $*" >> log; [ "$1" = show ] && echo node1 || true',
    "srun": 'shift; exec "$@"',
    "scancel": 'echo "scancel $*" >> log; kill -TERM "$(cat pid)"',
    "torchrun": """
echo "torchrun $*" >> log
trap 'mkdir -p run/checkpoints/step-000000001; exit 143' TERM
mkdir -p run; touch run/config.json
[ -e finish ] && exit 0
[ -e fail ] && exit 3
echo $$ > pid
while true; do sleep 0.05; done
""",
}


@pytest.fixture
def job(tmp_path):
    """Starts the script in an empty folder as Slurm does."""
    for name, body in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}

    def start(*arguments: str, script: str = "train.slurm", **more: str) -> subprocess.Popen:
        command = ["bash", str(SCRIPTS / script), *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | more, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists() and path.read_text().strip():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_a_preempted_run_saves_is_queued_again_and_goes_on(job, tmp_path):
    arguments = ["--data", "d", "--output", "run", "--epochs", "3"]
    first = job(*arguments)
    wait_for(tmp_path / "pid")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    log = (tmp_path / "log").read_text().splitlines()
    assert log[0] == "scontrol show hostnames node[1-2]"
    assert "--nnodes=2 --nproc_per_node=8" in log[1]
    assert "--rdzv_endpoint=node1:20007" in log[1]
    assert log[1].endswith("train.py " + " ".join(arguments))
    assert log[2:] == ["scancel --signal=TERM 7.0", "scontrol requeue 7"]
    assert (tmp_path / "run" / "checkpoints" / "step-000000001").is_dir()

    (tmp_path / "finish").touch()
    assert job(*arguments).wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith("--epochs 3 --resume")


def test_a_run_without_a_checkpoint_starts_again_and_is_kept(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "finish").touch()
    assert job("--output=run").wait(60) == 0
    assert "--resume" not in (tmp_path / "log").read_text()
    assert [old.joinpath("config.json").read_text() for old in tmp_path.glob("run.before-*")] == ["{}"]


def test_a_failed_training_fails_the_job_without_a_requeue(job, tmp_path):
    (tmp_path / "fail").touch()
    assert job("--output", "run").wait(60) == 3
    assert "requeue" not in (tmp_path / "log").read_text()


def test_a_missing_output_is_named(job, tmp_path):
    started = job("--data", "d")
    assert started.wait(60) == 2
    assert "--output" in started.stderr.read()
    assert not (tmp_path / "log").exists()


ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3"}


def test_inference_takes_its_part_and_is_queued_again(job, tmp_path):
    first = job("study", "--output", "r", script="infer.slurm", SLURM_ARRAY_TASK_ID="2", **ARRAY)
    wait_for(tmp_path / "pid")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    log = (tmp_path / "log").read_text().splitlines()
    assert "--nproc_per_node=8 --max-restarts=3" in log[0]
    assert log[0].endswith("infer.py study --output r --part 3/4 --skip-existing") and log[1] == "scontrol requeue 7"
    (tmp_path / "finish").touch()
    assert job("study", script="infer.slurm").wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith("infer.py study --part 1/1 --skip-existing")


def test_an_array_with_gaps_is_refused(job, tmp_path):
    gaps = job("study", script="infer.slurm", SLURM_ARRAY_TASK_ID="0", **ARRAY | {"SLURM_ARRAY_TASK_MAX": "6"})
    assert gaps.wait(60) == 2 and "without gaps" in gaps.stderr.read() and not (tmp_path / "log").exists()
