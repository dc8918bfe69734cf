"""Run folders: what was written stays, what is torn is dropped, what is another run is refused."""

import json
import os
import subprocess
import sys

import pytest

from kinetics_jax import files
from kinetics_jax.runs.folder import RunWriter, TraceError, read_run, regrade

RUN = {"model": "m", "policy": "dense", "sampling": {"seed": 0}, "versions": {"jax": "1"}, "device": "cpu"}
PROBLEMS = [{"id": name, "question": "q", "answer": "1", "prompt": "q"} for name in ("a", "b")]


def record(problem: str, sample: int, **changes) -> dict:
    empty = {"seed": 0, "prompt_tokens": 3, "text": "", "finish_reason": "stop", "correct": None, "answer": None}
    return {
        "problem": problem,
        "sample": sample,
        **empty,
        "output_tokens": [1, 2],
        "grader": "ok",
        "seconds": 0.1,
        **changes,
    }


def write(path, *records, run=RUN, problems=PROBLEMS) -> None:
    with RunWriter(path, run, problems) as writer:
        for each in records:
            writer.append(each)


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "run", record("a", 0, text="ü \u2028 \n"), record("b", 1))
    run = read_run(tmp_path / "run")
    assert run.samples == [record("a", 0, text="ü \u2028 \n"), record("b", 1)]
    assert list(run.problems) == ["a", "b"]
    assert run.header["schema"] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["problems.jsonl", "run.json", "samples.jsonl"]


def test_every_record_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    with RunWriter(tmp_path, RUN, PROBLEMS) as writer:
        writer.append(record("a", 0))
        assert len(read_run(tmp_path).samples) == 1


def test_a_run_is_continued_behind_what_it_holds(tmp_path):
    write(tmp_path, record("a", 0))
    before = (tmp_path / "samples.jsonl").read_bytes()
    with RunWriter(tmp_path, {**RUN, "versions": {"jax": "2"}, "device": "gpu"}, PROBLEMS) as writer:
        assert writer.done == {("a", 0)}
        writer.append(record("b", 0))
    assert (tmp_path / "samples.jsonl").read_bytes().startswith(before)
    assert len(read_run(tmp_path).samples) == 2


@pytest.mark.parametrize("cut", range(2, 40, 7))
def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path, cut):
    write(tmp_path, record("a", 0), record("b", 0))
    samples = tmp_path / "samples.jsonl"
    whole = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(whole[0] + whole[1][:-cut])
    with pytest.warns(UserWarning, match="dropped the torn last line"):
        assert read_run(tmp_path).samples == [record("a", 0)]
    with pytest.warns(UserWarning, match="torn"):
        write(tmp_path, record("b", 1))
    assert samples.read_bytes().startswith(whole[0])
    assert read_run(tmp_path).samples == [record("a", 0), record("b", 1)]


def test_a_broken_line_inside_is_an_error_with_its_number(tmp_path):
    write(tmp_path, record("a", 0), record("b", 0))
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(b"{broken\n" + samples.read_bytes())
    with pytest.raises(TraceError, match="line 1"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("run", "problems", "says"),
    [
        ({**RUN, "policy": "block_topk"}, PROBLEMS, 'policy: "dense" stored, "block_topk" asked for'),
        ({**RUN, "sampling": {"seed": 1}}, PROBLEMS, r"sampling\.seed: 0 stored, 1 asked for"),
        (RUN, PROBLEMS[:1], "the problems differ"),
    ],
)
def test_another_configuration_is_refused_and_nothing_lost(tmp_path, run, problems, says):
    write(tmp_path, record("a", 0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TraceError, match=says):
        write(tmp_path, run=run, problems=problems)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_strange_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(TraceError, match=r"holds thesis.tex but no run.json"):
        write(tmp_path)
    with pytest.raises(TraceError, match="not a run folder"):
        read_run(tmp_path)


def test_samples_without_their_run_json_are_not_taken_over(tmp_path):
    write(tmp_path, record("a", 0))
    (tmp_path / "run.json").unlink()
    before = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(TraceError, match=r"holds samples\.jsonl but no run\.json"):
        write(tmp_path)
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_a_folder_left_before_run_json_is_taken_over(tmp_path):
    (tmp_path / "problems.jsonl").write_text("half")
    (tmp_path / "run.json.partial").write_text("half")
    write(tmp_path, record("a", 0))
    assert len(read_run(tmp_path).samples) == 1


def test_repeated_and_incomplete_records_are_found(tmp_path):
    write(tmp_path, record("a", 0))
    samples = tmp_path / "samples.jsonl"
    line = samples.read_bytes()
    samples.write_bytes(line + line)
    with pytest.raises(TraceError, match="sample 0 is recorded twice"):
        write(tmp_path)
    samples.write_text(json.dumps({"problem": "a"}) + "\n")
    with pytest.raises(TraceError, match="line 1: missing sample"):
        read_run(tmp_path)


def test_another_schema_is_refused(tmp_path):
    write(tmp_path)
    for content in ('{"schema": 99}', "[]", "\xff"):
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
        with pytest.raises(TraceError, match=r"run\.json: (not|holds list)"):
            read_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"output_tokens": 5},
        {"output_tokens": [1, True]},
        {"output_tokens": [1, -1]},
        {"output_tokens": [10**30]},
        {"sample": None},
        {"sample": True},
        {"sample": -1},
        {"correct": "no"},
        {"prompt_tokens": "a"},
        {"prompt_tokens": 10**30},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"finish_reason": None},
        {"problem": ""},
    ],
)
def test_records_of_the_wrong_type_are_named(tmp_path, change):
    write(tmp_path, record("a", 0), {**record("b", 0), **change})
    with pytest.raises(TraceError, match=rf"samples\.jsonl, line 2: {next(iter(change))} cannot be"):
        read_run(tmp_path)


def test_two_writers_that_begin_together_leave_one_run(tmp_path):
    """Racing processes with different seeds: one gets the folder, the other one clear line, in every round."""
    script = (
        "import sys; from kinetics_jax.runs.folder import RunWriter, TraceError\n"
        "problems = [dict(id='a', question='q', answer='1', prompt='q')]\n"
        "for folder in range(40):\n"
        "    try:\n"
        "        with RunWriter(f'{sys.argv[1]}/{folder}', {'seed': int(sys.argv[2])}, problems): pass\n"
        "    except TraceError as error: assert 'another' in str(error), error\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    racers = [subprocess.Popen([*command, str(seed)]) for seed in (1, 2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    for folder in range(40):
        assert read_run(tmp_path / str(folder)).header["seed"] in (1, 2)


def test_a_second_writer_is_refused(tmp_path):
    with RunWriter(tmp_path, RUN, PROBLEMS) as writer:
        writer.append(record("a", 0))
        with pytest.raises(TraceError, match="another process is writing this run"):
            write(tmp_path, record("a", 0))
    write(tmp_path, record("b", 0))
    assert len(read_run(tmp_path).samples) == 2


FULL_DISK = """
import resource, sys
from kinetics_jax.errors import UserError
from test_folder import PROBLEMS, RUN, record
from kinetics_jax.runs.folder import RunWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with RunWriter(sys.argv[1], RUN, PROBLEMS) as writer:
        for sample in range(len(writer.done), 100):
            writer.append(record("a", sample, text="x" * 50))
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    folder = tmp_path / "run"

    def fill(limit: int) -> str:
        arguments = [sys.executable, "-c", FULL_DISK, str(folder), str(limit)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # it imports this file
        return subprocess.run(
            arguments, capture_output=True, text=True, check=True, timeout=60, env=environment
        ).stdout.strip()

    says = fill(2000)
    assert len(says.splitlines()) == 1
    assert "samples.jsonl: cannot be written" in says
    with pytest.warns(UserWarning, match="torn"):
        kept = read_run(folder).samples
    assert [each["sample"] for each in kept] == list(range(len(kept)))
    assert 3 <= len(kept) < 20
    assert fill(10**6) == ""  # with room again, the same call continues
    assert [each["sample"] for each in read_run(folder).samples] == list(range(100))


def test_regrading_replaces_grades_and_nothing_else(tmp_path):
    write(tmp_path, record("a", 0, text="1", correct=False), record("b", 1, text="2", correct=True))
    before, graded = regrade(
        tmp_path, lambda each, answer: {"correct": each["text"] == answer, "answer": each["text"], "grader": "ok"}
    )
    assert [each["correct"] for each in before.samples] == [False, True]
    assert graded == read_run(tmp_path)
    assert graded.samples == [
        record("a", 0, text="1", correct=True, answer="1"),
        record("b", 1, text="2", correct=False, answer="2"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["problems.jsonl", "run.json", "samples.jsonl"]


def test_regrading_waits_for_no_one_and_leaves_no_half(tmp_path):
    write(tmp_path, record("a", 0), record("b", 1))
    before = (tmp_path / "samples.jsonl").read_bytes()

    def broken(each, answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regrade(tmp_path, broken)
    with RunWriter(tmp_path, RUN, PROBLEMS), pytest.raises(TraceError, match="another process"):
        regrade(tmp_path, lambda each, answer: {})
    with pytest.raises(TraceError, match="not a run folder"):
        regrade(tmp_path / "none", lambda each, answer: {})
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_samples_of_unknown_problems_are_found(tmp_path):
    write(tmp_path, record("c", 0))
    with pytest.raises(TraceError, match="missing problem 'c'"):
        read_run(tmp_path)


def test_a_run_regraded_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    """The lock must be on the file that has the name, not on one that was replaced meanwhile."""
    write(tmp_path, record("a", 0))
    lock, regraded = files.fcntl.flock, []

    def late(file, how):
        if not regraded:
            regraded.append(True)
            files.write_atomic(tmp_path / "samples.jsonl", (tmp_path / "samples.jsonl").read_text())
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    write(tmp_path, record("b", 0))
    assert [each["problem"] for each in read_run(tmp_path).samples] == ["a", "b"]


def test_a_run_without_samples_may_begin_with_other_settings(tmp_path):
    write(tmp_path)
    write(tmp_path, record("a", 0), run={**RUN, "policy": "other"})
    assert read_run(tmp_path).header["policy"] == "other"


def test_a_setting_that_came_later_has_the_value_of_before(tmp_path):
    write(tmp_path, record("a", 0), run={**RUN, "sampling": {"seed": 0, "repetition_window": 0}})
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "sampling": {"seed": 0}}))
    write(tmp_path, record("b", 0), run={**RUN, "sampling": {"seed": 0, "repetition_window": 0}})
    assert len(read_run(tmp_path).samples) == 2
