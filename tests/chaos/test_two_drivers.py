"""Two commands that write one output at the same time: one of them does, the other is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.chaos import commands
from tests.e2e.conftest import SMALL

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster]

STAGES, SHARDS = ("paint", "derive"), 6**3
"""Shards of 8^3 cells: enough that a run takes several times as long as a sign of life."""

start = partial(commands.start, period=0.2, lease=60.0)
"""Start a command that gives signs of life more often than it would."""


def command(stage, chain, out, *more):
    if stage == "paint":
        arguments = ["paint", chain / "particles.zarr", out, *SMALL, "--set=paint.shard=8",
                     "--set=paint.chunk=8"]  # fmt: skip
    else:
        arguments = ["derive", chain / "fields.zarr", out, "--field=divergence",
                     "--field=vorticity", "--engine=serial", "--set=derive.shard=8"]  # fmt: skip
    return [*arguments, "--quiet", *more]


def finished(out):
    flags = out / "ledger" / "fields" / "c"
    return sum(name.name.isdecimal() for name in flags.iterdir()) if flags.is_dir() else 0


def wait_for(condition, process=None):
    deadline = time.monotonic() + 240.0
    while not condition():
        assert process is None or process.poll() is None, process.messages()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_both(arguments):
    """Start a command twice at the same time; return exit codes and messages, sorted."""
    both = [start(arguments) for _ in range(2)]
    ends = [process.communicate(timeout=240)[1].decode() for process in both]
    return sorted(zip([process.returncode for process in both], ends, strict=True))


def same(out, other):
    one, two = zarr.open_group(out, mode="r"), zarr.open_group(other, mode="r")
    assert one.attrs["status"] == "complete"
    assert one.attrs.asdict() == two.attrs.asdict()
    assert not (out / ".claims").exists()
    for name, array in one.arrays():
        np.testing.assert_array_equal(array[:], two[name][:])
    files = [{path.relative_to(store) for path in store.rglob("*")} for store in (out, other)]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def alone(chain, tmp_path_factory):
    """The outputs of lone runs."""
    outputs = {}
    for stage in STAGES:
        outputs[stage] = tmp_path_factory.mktemp("alone") / "out.zarr"
        assert start(command(stage, chain, outputs[stage])).wait(timeout=240) == 0
        assert finished(outputs[stage]) == SHARDS
    return outputs


@pytest.mark.parametrize("stage", ["paint", pytest.param("derive", marks=pytest.mark.slow)])
def test_fresh(chain, alone, tmp_path, stage):
    out = tmp_path / "out.zarr"
    (won, _), (lost, message) = run_both(command(stage, chain, out))
    assert (won, lost) == (0, 2), message
    assert "Traceback" not in message
    # It met the other's claim, or came when the other had made the output already.
    assert "another run is writing" in message or "exists already" in message
    assert str(out) in message
    same(out, alone[stage])


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_kill(chain, alone, tmp_path, stage, flag):
    out = tmp_path / "out.zarr"
    killed = start(command(stage, chain, out))
    wait_for(lambda: finished(out) >= 20, killed)
    killed.kill()
    killed.wait()
    assert finished(out) < SHARDS // 2
    assert (out / ".claims").is_dir()
    (won, _), (lost, message) = run_both(command(stage, chain, out, flag))
    assert (won, lost) == (0, 2), message
    assert "Traceback" not in message
    assert "another run is writing this output" in message
    assert "process " in message
    same(out, alone[stage])


@pytest.mark.parametrize("flag", ["--resume", pytest.param("--overwrite", marks=pytest.mark.slow)])
def test_a_running_output_is_refused(chain, alone, tmp_path, flag):
    out = tmp_path / "out.zarr"
    first = start(command("derive", chain, out))
    wait_for(lambda: finished(out) > 0, first)
    second = start(command("derive", chain, out, flag))
    _, message = second.communicate(timeout=240)
    assert second.returncode == 2, message.decode()
    assert b"another run is writing this output" in message
    assert str(first.pid).encode() in message
    _, message = first.communicate(timeout=240)
    assert first.returncode == 0, message.decode()
    same(out, alone["derive"])


def test_a_killed_run_is_resumed_at_once(chain, alone, tmp_path):
    out = tmp_path / "out.zarr"
    # A child of this process, which does not wait for it: to the next run it is a zombie.
    killed = subprocess.Popen(
        [sys.executable, "-m", "cosmoflow", *map(str, command("derive", chain, out))],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: finished(out) > 0)
    assert killed.poll() is None
    killed.kill()
    # It does not wait for the lease to end.
    resumed = start(command("derive", chain, out, "--resume"), lease=10_000.0)
    _, message = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, message.decode()
    killed.wait()
    same(out, alone["derive"])


def test_a_driver_that_slept_does_not_go_on(chain, alone, tmp_path):
    out = tmp_path / "out.zarr"
    sleeper = start(command("derive", chain, out))
    wait_for(lambda: finished(out) >= 20, sleeper)
    os.kill(sleeper.pid, signal.SIGSTOP)
    heir = start(command("derive", chain, out, "--resume"), lease=1.5)
    wait_for(lambda: len(claims(out)) > 1, heir)
    done = finished(out)
    os.kill(sleeper.pid, signal.SIGCONT)
    _, message = sleeper.communicate(timeout=240)
    assert sleeper.returncode == 5, message.decode()
    assert b"has lost its output" in message
    assert b"Traceback" not in message
    assert done < SHARDS
    _, message = heir.communicate(timeout=240)
    assert heir.returncode == 0, message.decode()
    same(out, alone["derive"])


def claims(out):
    return [json.loads(path.read_text()) for path in Path(out, ".claims").glob("*.claim")]
