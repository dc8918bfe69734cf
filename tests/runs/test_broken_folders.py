"""Run folders that others have changed: nothing is lost, nothing is taken for what it is not, one line says what is
wrong.
"""

import json
import os
import shutil

import pytest

from kinetics_jax.runs.folder import RunWriter, TraceError, read_run, regrade

RUN = {"model": "m", "policy": "dense", "sampling": {"seed": 0}}
PROBLEMS = [{"id": name, "question": "q", "answer": "1", "prompt": "q"} for name in ("a", "b")]
RECORD = {
    "seed": 0,
    "prompt_tokens": 3,
    "output_tokens": [1, 2],
    "text": "",
    "finish_reason": "stop",
    "correct": None,
    "answer": None,
    "grader": "ok",
    "seconds": 0.1,
}


def record(problem: str, sample: int) -> dict:
    return {"problem": problem, "sample": sample, **RECORD}


def write(path, *records) -> None:
    with RunWriter(path, RUN, PROBLEMS) as writer:
        for each in records:
            writer.append(each)


def put_instead(path, kind: str) -> None:
    """Something else in the place of a file."""
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to({"circle": path.name, "device": "/dev/zero", "broken link": "nothing-here"}[kind])


def carriage_returns(data: bytes) -> list[bytes]:
    """The bytes with one line feed made a carriage return, then with all but the last, then with all of them."""
    ends = [i for i, byte in enumerate(data) if byte == 10]
    each = [data[:at] + b"\r" + data[at + 1 :] for at in ends[:-1]]
    return [*each, data[:-1].replace(b"\n", b"\r") + b"\n", data.replace(b"\n", b"\r")]


def test_no_record_is_lost_to_a_carriage_return(tmp_path):
    """Neither reading, nor grading again, nor going on takes what follows a wrong line end for a torn line."""
    write(tmp_path, record("a", 0), record("a", 1), record("b", 0))
    samples = tmp_path / "samples.jsonl"
    for data in carriage_returns(samples.read_bytes()):
        samples.write_bytes(data)
        for attempt in (read_run, lambda path: regrade(path, lambda each, answer: {}), write):
            with pytest.raises(TraceError, match=r"samples\.jsonl, line \d: holds a carriage return"):
                attempt(tmp_path)
        assert samples.read_bytes() == data


def test_a_last_record_that_lacks_only_its_line_feed_is_whole(tmp_path, recwarn):
    write(tmp_path, record("a", 0), record("b", 0))
    samples = tmp_path / "samples.jsonl"
    for end in (b"", b"\r", b" "):
        samples.write_bytes(samples.read_bytes().rstrip() + end)
        assert len(read_run(tmp_path).samples) == 2
    write(tmp_path, record("b", 1))
    assert [(each["problem"], each["sample"]) for each in read_run(tmp_path).samples] == [("a", 0), ("b", 0), ("b", 1)]
    assert not recwarn.list


def test_grading_again_keeps_what_it_cannot_read(tmp_path):
    write(tmp_path, record("a", 0))
    samples = tmp_path / "samples.jsonl"
    torn = b'{"problem": "b", "sam\xff'
    samples.write_bytes(samples.read_bytes() + torn)
    with pytest.warns(UserWarning, match="torn"):
        regrade(tmp_path, lambda each, answer: {"correct": True})
    assert samples.read_bytes().endswith(b"}\n" + torn)
    samples.write_bytes(json.dumps(record("a", 0)).encode()[:-1] + b', "correct": true}\n')
    with pytest.raises(TraceError, match=r"line 1: .*correct stands there twice"):
        regrade(tmp_path, lambda each, answer: {"correct": True})


@pytest.mark.parametrize("how", ["deleted", "replaced", "emptied", "other run.json"])
def test_a_folder_that_is_changed_meanwhile_is_never_done(tmp_path, how):
    out = tmp_path / "run"
    with RunWriter(out, RUN, PROBLEMS) as writer:
        writer.append(record("a", 0))
        if how == "other run.json":
            (out / "run.json").write_text(json.dumps({**RUN, "schema": 2, "policy": "other"}))
        elif how == "emptied":
            os.truncate(out / "samples.jsonl", 0)
        else:
            shutil.rmtree(out)
        if how == "replaced":
            write(out, record("b", 0))
        if how in ("deleted", "replaced"):
            with pytest.raises(TraceError, match="deleted or replaced while this process"):
                writer.append(record("b", 1))
        with pytest.raises(
            TraceError, match=r"deleted or replaced|was changed while this run .*\(\d samples are gone\)"
        ):
            writer.read_back()


@pytest.mark.parametrize("name", ["run.json", "problems.jsonl", "samples.jsonl"])
def test_only_regular_files_of_a_run_are_read(tmp_path, name):
    write(tmp_path, record("a", 0))
    path = tmp_path / name
    kept = path.read_bytes()
    for kind in ("directory", "pipe", "circle", "device", "sparse", "broken link"):
        path.unlink()
        put_instead(path, kind)
        for attempt in (read_run, lambda path: regrade(path, lambda each, answer: {}), write):
            with pytest.raises(TraceError) as caught:
                attempt(tmp_path)
            assert len(str(caught.value).splitlines()) == 1
            assert name in str(caught.value)
        path.rmdir() if kind == "directory" else path.unlink()
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": -1}, "n cannot be -1; it is a whole number"),
        ({"n": 10**30}, "n cannot be 1000"),
        ({"model": ["m"]}, r"model cannot be \['m'\]"),
        ({"sampling": []}, "sampling cannot be"),
        ({"sampling": {"max_tokens": float("nan")}}, r"sampling\.max_tokens cannot be nan"),
        ({"sampling": {"temperature": "hot"}}, r"sampling\.temperature cannot be"),
        ({"n": "x" * 5000}, "n cannot be 'x+…x+'; it"),
    ],
)
def test_run_json_is_judged_field_by_field(tmp_path, change, says):
    write(tmp_path, record("a", 0))
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "schema": 1, **change}))
    with pytest.raises(TraceError, match=rf"run\.json: {says}"):
        read_run(tmp_path)
