"""Files and directories that appear whole or not at all."""

import pytest

from kinetics_jax.files import atomic_directory, lock_file, write_atomic


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    write_atomic(path, "é\ud800")
    assert path.read_bytes() == "é\\ud800".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "new"
    with atomic_directory(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [each.name for each in target.parent.iterdir()] == ["new"]


def test_a_directory_that_fails_leaves_nothing(tmp_path):
    def stopped():
        with atomic_directory(tmp_path / "new") as partial:
            (partial / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_taken_meanwhile_is_kept(tmp_path):
    target = tmp_path / "new"

    def late():
        with atomic_directory(target):
            target.mkdir()
            (target / "theirs").write_text("1")

    with pytest.raises(OSError, match="new"):
        late()
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    assert [each.name for each in target.iterdir()] == ["theirs"]


def test_a_file_is_locked_once(tmp_path):
    with open(tmp_path / "a", "ab") as one, open(tmp_path / "a", "ab") as two:
        lock_file(one)
        with pytest.raises(BlockingIOError):
            lock_file(two)
