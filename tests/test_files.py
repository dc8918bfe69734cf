"""Files and directories that appear whole or not at all."""

import os

import pytest

from kinetics_jax.errors import UserError, shown, spelled
from kinetics_jax.files import FileError, atomic_directory, lock_file, open_regular, parse_json, read_json, write_atomic


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


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("whole")
    (tmp_path / "whole").write_bytes(b"12345")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert open_regular(tmp_path / "link", at_most=5).read() == b"12345"
    for name, says in {
        "pipe": "is a pipe, not a regular file",
        ".": "is a directory, not a regular file",
        "/dev/zero": "is a device, not a regular file",
        "circle": "cannot be opened",
        "sparse": "is too large to be one (1,099,511,627,776 bytes; at most 10 are read)",
        "n" * 5000: "cannot be opened",
        "zero\0": "cannot be opened",
    }.items():
        with pytest.raises(FileError) as error:
            open_regular(tmp_path / name, at_most=10)
        assert says in str(error.value), name
        assert len(str(error.value)) < 600
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    for text, says in {
        "[" * 100_000: "nests too deeply",
        '{"a": 1, "a": 2}': "a stands there twice",
        "[1]": "holds list, expected a JSON object",
        "{": "not valid JSON",
        "\xff": "not valid JSON",
        '{"a": ' + "9" * 5000 + "}": "not valid JSON",
    }.items():
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(FileError, match=says) as error:
            read_json(path)
        assert str(error.value).startswith(str(path))
        assert len(str(error.value)) < 600
    assert parse_json('{"a": [1], "a": [1]}', "x") == {"a": [1]}


def test_a_terminal_does_not_obey_names():
    assert str(UserError("\x1b[31mred\r\a\n  next")) == "\\x1b[31mred\\r\\x07\n  next"
    assert shown("a\nb") == "a\\nb"
    assert spelled("a\nb") == r"'a\nb'"
    assert len(shown("x" * 5000)) < 100
    assert len(spelled(["x"] * 5000)) < 100
    assert spelled(10**5000) == "a int"
