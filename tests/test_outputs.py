"""What outputs are written to stays what it was, or is refused in one line."""

import os
import stat

import pytest

from kinetics_jax.files import FileError, output_file, write_atomic


def test_an_output_keeps_what_it_is_written_to(tmp_path):
    """Links lead to their target, permissions stay."""
    target = tmp_path / "target.csv"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.csv").symlink_to("target.csv")
    (tmp_path / "chain.csv").symlink_to("link.csv")
    write_atomic(tmp_path / "chain.csv", "new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "chain.csv").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    os.link(target, tmp_path / "kept.csv")
    write_atomic(target, b"newer")  # never half-written: a copy by hard links keeps what it has
    assert (target.read_text(), (tmp_path / "kept.csv").read_text()) == ("newer", "new")
    (tmp_path / "to-be.csv").symlink_to("not-yet.csv")
    write_atomic(tmp_path / "to-be.csv", "first")
    assert (tmp_path / "not-yet.csv").read_text() == "first"
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_pipes_and_devices_are_written_in_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    write_atomic(tmp_path / "null", "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_cannot_be_an_output_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("no/where")
    (tmp_path / "file").write_text("")
    for name, says in (
        ("", "is a directory; name a file"),
        (".", "is a directory; name a file"),
        ("circle", "circle of links"),
        ("lost", "there is no folder .*no"),
        ("none/x.csv", "there is no folder"),
        ("file/x.csv", "cannot be written|no folder"),
        ("x" * 300, "name too long"),
        ("a\0b", "cannot be written"),
    ):
        with pytest.raises(FileError, match=f"(?i){says}") as caught:
            write_atomic(tmp_path / name if name not in ("", ".") else name, "x")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FileError, match="is a directory"):
        output_file(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FileError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomic(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == ""
    assert sorted(each.name for each in tmp_path.iterdir()) == ["circle", "file", "lost"]
