"""Folders that all test processes of a run share, and when their files were written."""

import fcntl
import os
import shutil


def shared_folder(tmp_path_factory, name, fill):
    """Return a folder that one process has filled. Tests read it and do not write to it.

    Parameters
    ----------
    tmp_path_factory : pytest.TempPathFactory
    name : str
        Name of the folder, alike in all processes.
    fill : callable
        Fills the empty folder whose path it is given.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    whole = folder.with_suffix(".whole")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            # What a test process that failed has left.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            whole.touch()
    return folder


def written(folder):
    """Return when each file of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
