"""Checkpoints: the newest few, each whole or passed over."""

from pathlib import Path

import pytest

from cosmoflow.errors import StorageError
from cosmoflow.storage.checkpoints import CheckpointFolder
from tests.cases import each


def body(step):
    return f"weights of step {step} ".encode() * 50


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def damaged():
    return []


@pytest.fixture
def checkpoints(folder, damaged):
    return CheckpointFolder(str(folder), 3, damaged.append)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_name(step):
    return f"step-{step:010d}.ckpt"


def test_nothing_there_is_no_checkpoint(checkpoints, folder, damaged):
    assert checkpoints.newest() is None
    checkpoints.clear()
    folder.mkdir()
    assert checkpoints.newest() is None
    assert damaged == []


@each("content", [b"", b"x", bytes(range(256)) * 999])
def test_content_comes_back(tmp_path, content):
    checkpoints = CheckpointFolder(str(tmp_path), 3)
    checkpoints.save(1, content)
    assert checkpoints.newest() == content


def test_the_newest_are_kept(checkpoints, folder):
    for count, step in enumerate((8, 9, 10, 99, 100, 1000), 1):
        checkpoints.save(step, body(step))
        assert checkpoints.newest() == body(step)
        assert len(names(folder)) == min(count, 3)
    assert names(folder) == [step_name(step) for step in (99, 100, 1000)]


@each("keep", [1, 2])
def test_keep_is_honoured(tmp_path, keep):
    folder = tmp_path / "checkpoints"
    checkpoints = CheckpointFolder(str(folder), keep)
    for step in range(5):
        checkpoints.save(step, body(step))
    assert names(folder) == [step_name(step) for step in range(5 - keep, 5)]


def test_saving_a_step_again_replaces_it(checkpoints, folder):
    checkpoints.save(5, body(5))
    checkpoints.save(5, b"again")
    assert names(folder) == [step_name(5)]
    assert checkpoints.newest() == b"again"


def cut(position):
    def damage(content):
        return content[:position]

    return damage


def flip(position):
    def damage(content):
        changed = bytearray(content)
        changed[position] ^= 1
        return bytes(changed)

    return damage


DAMAGES = {
    "empty": cut(0), "within the digest": cut(20), "digest alone": cut(32), "half": cut(400),
    "last byte lost": cut(-1), "flip in digest": flip(3), "flip in body": flip(500),
    "flip at end": flip(-1), "longer": lambda content: content + b"\0",
}  # fmt: skip


@each("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_passed_over_and_told(tmp_path, damage):
    folder, damaged = tmp_path / "checkpoints", []
    checkpoints = CheckpointFolder(str(folder), 3, damaged.append)
    for step in (1, 2, 3):
        checkpoints.save(step, body(step))
    path = folder / step_name(3)
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoints.newest() == body(2)
    assert damaged == [str(path)]
    assert CheckpointFolder(str(folder), 3).newest() == body(2)


def test_all_damaged_is_no_checkpoint_and_all_told(checkpoints, folder, damaged):
    for step in (1, 2):
        checkpoints.save(step, body(step))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert checkpoints.newest() is None
    assert damaged == [str(folder / step_name(step)) for step in (2, 1)]


def test_clear_deletes_checkpoints_and_nothing_else(checkpoints, folder):
    for step in (1, 2, 3):
        checkpoints.save(step, body(step))
    (folder / "notes.txt").write_text("mine")
    checkpoints.clear()
    assert names(folder) == ["notes.txt"]
    assert checkpoints.newest() is None
    checkpoints.save(7, body(7))
    assert checkpoints.newest() == body(7)


def kill_during(monkeypatch, method):
    """Make a write die at ``Path.<method>``; a write of bytes dies half way through."""

    def die(self, *arguments):
        if method == "write_bytes":
            with self.open("wb") as file:
                file.write(arguments[0][: len(arguments[0]) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, method, die)


@each("method", ["write_bytes", "replace"])
def test_killed_save_leaves_no_checkpoint(tmp_path, monkeypatch, method):
    folder, damaged = tmp_path / "checkpoints", []
    checkpoints = CheckpointFolder(str(folder), 3, damaged.append)
    checkpoints.save(1, body(1))
    with monkeypatch.context() as patch:
        kill_during(patch, method)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, body(2))
    assert len(names(folder)) == 2  # the partial file is there, under another name
    assert [name for name in names(folder) if name.endswith(".ckpt")] == [step_name(1)]
    assert checkpoints.newest() == body(1)
    assert damaged == []
    checkpoints.save(2, body(2))
    assert names(folder) == [step_name(1), step_name(2)]


def test_killed_save_of_the_same_step_keeps_the_old_one(checkpoints, monkeypatch, folder):
    checkpoints.save(1, body(1))
    with monkeypatch.context() as patch:
        kill_during(patch, "write_bytes")
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, b"other")
    assert checkpoints.newest() == body(1)


def test_failed_save_is_a_storage_error_and_drops_nothing(checkpoints, folder, monkeypatch):
    for step in (1, 2, 3):
        checkpoints.save(step, body(step))

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="No space left") as caught:
            checkpoints.save(4, body(4))
    assert step_name(4) in caught.value.where
    assert names(folder) == [step_name(step) for step in (1, 2, 3)]


def test_file_urls(folder):
    checkpoints = CheckpointFolder(f"file://{folder}", 1)
    checkpoints.save(1, body(1))
    checkpoints.save(2, body(2))
    assert names(folder) == [step_name(2)]
    assert checkpoints.newest() == body(2)
