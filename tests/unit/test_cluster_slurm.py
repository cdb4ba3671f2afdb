"""cluster/slurm.sh, with stand-ins for Slurm's commands: what it starts, and how it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import xarray as xr

from cosmoflow.stages.paint import paint
from tests.cases import each

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
JOB = "4711"

SRUN = """\
#!/usr/bin/env bash
# Runs the command on every node. All are this machine; each has its own scratch and metrics port.
echo "srun $*" >>"$CALLS"
nodes=$SLURM_JOB_NUM_NODES
while [[ $1 == --* ]]; do
  case $1 in --nodes=*) nodes=${1#*=} ;; esac
  shift
done
pids=()
for ((node = 0; node < nodes; node++)); do
  own=("${@/$COSMOFLOW_SCRATCH/$COSMOFLOW_SCRATCH$node}")
  "${own[@]/port=80/port=9$node}" &
  pids+=($!)
done
trap : TERM
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done
done
exit "$status"
"""
SCONTROL = """\
#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
if [ "$1" = show ]; then printf 'localhost\\nlocalhost\\n'; fi
"""
RAY = """\
#!/usr/bin/env bash
token=$RAY_AUTH_TOKEN_PATH
echo "ray $* [$RAY_AUTH_MODE, $(stat -c %a "$token"), $(wc -c <"$token")]" >>"$CALLS"
case "$*" in
  health-check*)
    if [ -n "${HEAD_STATUS:-}" ]; then exit "$HEAD_STATUS"; fi
    # A head is well once it has said that it started.
    until grep -q '^ray start.*--head' "$CALLS"; do sleep 0.02; done
    exit ;;
  *--head*) ;;
  *) if [ -n "${WORKER_STATUS:-}" ]; then exit "$WORKER_STATUS"; fi ;;
esac
trap 'echo "ray ended" >>"$CALLS"; exit 0' TERM
sleep 60 &
wait
"""
PYTHON = """\
#!/usr/bin/env bash
# Ends when all have joined, or as it is told.
cat >/dev/null
if [ -z "${JOINING:-}${JOIN_STATUS:-}" ]; then
  until [ "$(grep -c '^ray start' "$CALLS")" -eq 3 ]; do sleep 0.02; done
fi
sleep "${JOINING:-0}"
exit "${JOIN_STATUS:-0}"
"""
COSMOFLOW = """\
#!/usr/bin/env bash
echo "cosmoflow $*" >>"$CALLS"
if [ -z "${LONG:-}" ]; then exit "${STATUS:-0}"; fi
trap 'echo "cosmoflow interrupted" >>"$CALLS"; exit 130' INT
touch "$CALLS.started"
sleep 60 &
wait
"""


def put_command(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


class Job:
    """A Slurm job of two nodes that are this machine."""

    def __init__(self, folder, commands):
        self.folder = folder
        self.calls_path = folder / "calls"
        self.calls_path.touch()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **commands}.items():
            put_command(folder / "bin", name, text)

    def start(self, *command, **variables):
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CALLS": str(self.calls_path),
            "COSMOFLOW_SCRATCH": str(self.folder / "s"),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_SUBMIT_DIR": str(self.folder),
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *command],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command, **variables):
        """Return the exit status and what was printed."""
        process = self.start(*command, **variables)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def interrupt(self, number, **variables):
        """Send a signal to the script, as Slurm does, while its command runs."""
        process = self.start("cosmoflow", "paint", LONG="yes", **variables)
        give_up = time.monotonic() + 240.0
        while not self.calls_path.with_name("calls.started").exists():
            assert time.monotonic() < give_up, self.calls
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=240)
        return process.returncode

    @property
    def calls(self):
        return self.calls_path.read_text().splitlines()

    def calls_of(self, *words):
        return [call for call in self.calls if all(word in call for word in words)]

    @property
    def left(self):
        """What the job has left behind, the token above all."""
        return list(self.folder.glob(".cosmoflow-*"))


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


def make_job(folder):
    return Job(folder, {"ray": RAY, "python": PYTHON, "cosmoflow": COSMOFLOW})


def test_a_command_runs_on_all_nodes(job):
    status, output = job.run("cosmoflow", "paint", "in", "out", "--grid", "64")
    assert status == 0, output
    (command,) = job.calls_of("cosmoflow paint")
    assert command == "cosmoflow paint in out --grid 64 --address 127.0.0.1:24711"
    (head,) = job.calls_of("ray start", "--head", "[")
    workers = job.calls_of("ray start", "--address=127.0.0.1:24711", "[")
    assert "--num-cpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--labels=cosmoflow/pool=head" in head
    assert len(workers) == 2
    assert all("--labels=cosmoflow/pool=cpu" in worker for worker in workers)
    # The head is there before the workers, and the command comes last.
    assert job.calls.index(head) < job.calls.index(workers[0]) < job.calls.index(command)


def test_the_token_is_for_this_user_alone_and_goes_with_the_job(job):
    assert job.run("cosmoflow", "paint")[0] == 0
    rays = job.calls_of("ray ", "[")
    assert len(rays) == 4
    assert all(call.endswith("[token, 600, 64]") for call in rays)
    assert job.left == []
    assert job.calls.count("ray ended") == 3


def test_nodes_with_gpus_are_the_gpu_pool(job):
    assert job.run("cosmoflow", "train", SLURM_GPUS_ON_NODE="4")[0] == 0
    assert len(job.calls_of("ray start", "--labels=cosmoflow/pool=gpu", "[")) == 2


@each("status", [1, 3, 5])
def test_the_job_ends_as_its_command_does(tmp_path, status):
    job = make_job(tmp_path)
    assert job.run("cosmoflow", "paint", STATUS=str(status))[0] == status
    assert job.left == []
    assert job.calls_of("scontrol requeue") == []


def test_a_requeued_job_resumes(job):
    assert job.run("cosmoflow", "paint", SLURM_RESTART_COUNT="1")[0] == 0
    assert job.calls_of("cosmoflow paint")[0].endswith(" --resume")


def test_a_job_whose_time_is_up_stops_and_is_requeued(job):
    assert job.interrupt(signal.SIGUSR1) == 130
    assert job.calls[-1] == f"scontrol requeue {JOB}"
    ended = [index for index, call in enumerate(job.calls) if call == "ray ended"]
    # The command first, while it still has nodes; all of them before the job is queued again.
    assert job.calls.index("cosmoflow interrupted") < min(ended)
    assert len(ended) == 3
    assert job.left == []


def test_a_job_that_keeps_running_out_of_time_is_not_requeued_for_ever(job):
    assert job.interrupt(signal.SIGUSR1, SLURM_RESTART_COUNT="20") == 130
    assert job.calls_of("scontrol requeue") == []


@each("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_job_stops_and_is_not_requeued(tmp_path, number):
    job = make_job(tmp_path)
    assert job.interrupt(number) == 130
    assert job.calls.count("cosmoflow interrupted") == 1
    assert job.calls.count("ray ended") == 3
    assert job.calls_of("scontrol requeue") == []
    assert job.left == []


@each(
    ("variables", "words"),
    [
        ({"JOIN_STATUS": "1"}, "the nodes did not come up"),
        ({"JOINING": "30", "WORKER_STATUS": "1"}, "the nodes did not come up"),
        ({"JOINING": "30", "WORKER_STATUS": "0"}, "ended before all had joined"),
        ({"HEAD_STATUS": "1", "COSMOFLOW_JOIN_SECONDS": "1"}, "head did not start"),
    ],
)
def test_nodes_that_do_not_come_up_end_the_job(tmp_path, variables, words):
    job = make_job(tmp_path)
    status, output = job.run("cosmoflow", "paint", **variables)
    assert status == 1
    assert words in output
    assert job.calls_of("cosmoflow paint") == []
    assert job.left == []


def test_a_job_without_a_command_says_how(job):
    status, output = job.run()
    assert status == 2
    assert "usage: sbatch" in output
    assert job.calls == []


@pytest.fixture
def short_folder():
    """A folder whose name leaves room for Ray's in the 107 bytes of a socket's."""
    with tempfile.TemporaryDirectory(prefix="cf-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.cluster
def test_real_nodes_paint(short_folder, particle_store, serial_run):
    """A head and two workers of Ray itself, on this machine."""
    store = particle_store(16)
    outputs = [str(short_folder / name) for name in ("slurm.zarr", "serial.zarr")]
    job = Job(short_folder, {})
    command = ("cosmoflow", "paint", store.url, outputs[0], "--grid", "16", "--engine", "ray")
    status, output = job.run(*command)
    assert status == 0, output
    assert job.left == []
    # Nor is anything left on the two nodes, which both had something.
    scratch = [short_folder / name for name in ("s0", "s1")]
    assert [list(folder.iterdir()) for folder in scratch] == [[], []]
    paint(store.url, outputs[1], serial_run(paint={"grid": 16}))
    fields, alone = (xr.open_zarr(url, consolidated=False) for url in outputs)
    xr.testing.assert_equal(fields, alone)
