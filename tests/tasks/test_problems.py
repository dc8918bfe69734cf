"""Problem sets from the hub's cache and from files, and what is refused."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from paths import SHARED

from kinetics_jax.tasks.problems import HUB_TASKS, Problem, TaskError, load_problem_file, load_problems, split_files

SETS = SHARED / "problems"
FILES = {
    "aime24": "aime24.jsonl",
    "aime25": "aime25.jsonl",
    "amc23": "amc23.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
    "math500": "math500.json",
}
real_sets = pytest.mark.skipif(not SETS.exists(), reason="the problem sets are not here")


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@real_sets
@pytest.mark.parametrize("task", FILES)
def test_real_sets(task):
    problems = load_problem_file(SETS / FILES[task], task=task)
    assert len(problems) == HUB_TASKS[task].count
    assert len({problem.id for problem in problems}) == len(problems)
    assert all(problem.question.strip() and problem.answer.strip() for problem in problems)
    assert all("####" not in problem.answer and len(problem.answer) < 100 for problem in problems)
    assert load_problem_file(SETS / FILES[task], task=task, limit=7) == problems[:7]


@real_sets
def test_spot_checks():
    sets = {task: load_problem_file(SETS / name, task=task) for task, name in FILES.items()}
    first = {task: (problems[0].id, problems[0].answer) for task, problems in sets.items()}
    assert first == {
        "aime24": ("aime24-0", "73"),
        "aime25": ("I-1", "70"),
        "amc23": ("0", "27"),
        "gsm8k": ("gsm8k-0", "18"),
        "math500": ("test/precalculus/807.json", r"\left( 3, \frac{\pi}{2} \right)"),
    }
    assert sets["amc23"][3].answer == "3159"
    assert sets["aime25"][-1].id == "II-15"
    answers = {problem.answer for problem in sets["gsm8k"]}
    assert {"2125", "114200", "-10"} <= answers
    assert all(answer.lstrip("-").replace(".", "").isdigit() for answer in answers)


def test_the_builtin_task_is_what_it_was():
    problems = load_problems("builtin")
    assert len(problems) == 132
    assert problems[0].id == "chase-000"
    assert problems[0].question.split()[-2:] == ["at", problems[0].question.split()[-1]]
    assert load_problems("builtin", limit=2) == problems[:2]


def test_unknown_tasks_and_limits():
    with pytest.raises(TaskError, match=r"task 'aime23' is not known \(known: builtin, ledger, route, aime24"):
        load_problems("aime23")
    for task in ("builtin", "gsm8k"):
        with pytest.raises(TaskError, match=f"task '{task}': the number of problems must be at least 1, got 0"):
            load_problems(task, limit=0)


class TestFiles:
    def test_jsonl(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        text = '{"question": "1\\u2028+1?", "answer": 2}\n\n{"question": "6*7? \u2028", "answer": "42 "}'
        path.write_text("\ufeff" + text, encoding="utf-8")  # a byte order mark, an empty line, no last newline
        assert load_problem_file(path) == [
            Problem("mine-0", "1\u2028+1?", "2"),
            Problem("mine-1", "6*7? \u2028", "42"),
        ]
        assert load_problem_file(path, task="sums", limit=1)[0].id == "sums-0"

    def test_json(self, tmp_path):
        path = tmp_path / "mine.json"
        path.write_text('[{"Problem": "1/2+1?", "Answer": 1.5},\n {"Problem": "1+1?", "Answer": 2.0}]')
        assert load_problem_file(path) == [Problem("mine-0", "1/2+1?", "1.5"), Problem("mine-1", "1+1?", "2")]
        lines = write(tmp_path / "lines.json", {"question": "q", "answer": "a"})  # JSON lines under another name
        assert load_problem_file(lines) == [Problem("lines-0", "q", "a")]

    def test_csv(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_text('\ufeffid,question,answer\na,"one, two\nthree?",3\nb,four?,"4,5"\n', encoding="utf-8")
        assert load_problem_file(path) == [Problem("a", "one, two\nthree?", "3"), Problem("b", "four?", "4,5")]

    def test_parquet(self, tmp_path):
        path = tmp_path / "mine.parquet"
        pd.DataFrame({"id": [60, 61], "problem": ["a?", "b?"], "answer": [7, 8]}).to_parquet(path)
        assert load_problem_file(path) == [Problem("60", "a?", "7"), Problem("61", "b?", "8")]

    def test_single_precision_is_read_at_its_own(self, tmp_path):
        path = tmp_path / "mine.parquet"
        answers = np.array([0.1, 2, 0.7], dtype=np.float32)
        pd.DataFrame({"problem": ["a?", "b?", "c?"], "answer": answers}).to_parquet(path)
        assert [problem.answer for problem in load_problem_file(path)] == ["0.1", "2", "0.7"]

    @pytest.mark.parametrize(
        "held",
        [
            {"data": [{"question": "a?", "answer": "1"}, {"question": "b?", "answer": 2}], "version": 1},
            {"question": ["a?", "b?"], "answer": ["1", 2]},
            {"question": {"0": "a?", "1": "b?"}, "answer": {"0": "1", "1": 2}},
            {"x": {"question": "a?", "answer": "1"}, "y": {"question": "b?", "answer": 2}},
            [{"question": "a?", "answer": "1"}, {"question": "b?", "answer": 2}],
        ],
    )
    @pytest.mark.parametrize("indent", [None, 1])
    def test_a_json_object(self, tmp_path, held, indent):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(held, indent=indent))
        assert load_problem_file(path) == [Problem("mine-0", "a?", "1"), Problem("mine-1", "b?", "2")]

    def test_one_problem_as_a_json_object(self, tmp_path):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"question": "a?", "answer": "1"}, indent=1))
        assert load_problem_file(path) == [Problem("mine-0", "a?", "1")]

    def test_header_case_and_spaces(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_text("Question, Answer\na?, 1\n")
        assert load_problem_file(path) == [Problem("mine-0", "a?", "1")]

    def test_lost_backslashes_stay_visible(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_text('{"question": "a?", "answer": "\\theta"}\n{"question": "b?", "answer": " \\frac{1}{2}"}\n')
        assert [problem.answer for problem in load_problem_file(path)] == ["\theta", "\x0crac{1}{2}"]

    def test_contradictions_are_told(self, tmp_path):
        twice = [{"id": name, "question": "How  many?", "answer": answer} for name, answer in (("a", 1), ("b", 2))]
        path = write(tmp_path / "mine.jsonl", *twice)
        with pytest.warns(UserWarning, match="mine: the same question with different answers: a and b"):
            assert len(load_problem_file(path)) == 2

    def test_columns(self, tmp_path):
        path = write(tmp_path / "mine.jsonl", {"frage": "q", "antwort": "a", "question": "other", "answer": "other"})
        assert load_problem_file(path, question_column="frage", answer_column="antwort") == [
            Problem("mine-0", "q", "a")
        ]

    def test_solutions_give_their_last_box(self, tmp_path):
        solution = r"First \boxed{1}, then \boxed{\frac{1}{2}}."
        path = write(tmp_path / "mine.jsonl", {"problem": "q", "solution": solution})
        with pytest.warns(
            UserWarning, match="mine.jsonl, line 1: 'solution' boxes several answers; the last one counts"
        ):
            assert load_problem_file(path)[0].answer == r"\frac{1}{2}"
        both = write(tmp_path / "both.jsonl", {"problem": "q", "solution": solution, "answer": "0.5"})
        assert load_problem_file(both)[0].answer == "0.5"
        with pytest.warns(UserWarning, match="boxes several answers"):
            assert load_problem_file(both, answer_column="solution")[0].answer == r"\frac{1}{2}"

    @pytest.mark.parametrize(
        ("box", "answer"), [(r"\fbox{3}", "3"), (r"\boxed 3", "3"), (r"\boxed{3}, in \boxed{}", "3")]
    )
    def test_solutions_are_boxed_as_samples_are(self, tmp_path, box, answer):
        path = write(tmp_path / "mine.jsonl", {"problem": "q", "solution": f"So it is ${box}$."})
        assert load_problem_file(path)[0].answer == answer

    @pytest.mark.parametrize(
        ("marked", "answer"), [("2,000", "2000"), ("-12,345.60", "-12345.60"), ("(1, 2)", "(1, 2)"), ("3,4", "3,4")]
    )
    def test_answers_after_a_mark(self, tmp_path, marked, answer):
        path = write(tmp_path / "mine.jsonl", {"question": "q", "answer": f"2 * 1000\n#### {marked}"})
        assert load_problem_file(path)[0].answer == answer

    @pytest.mark.parametrize(
        ("columns", "ids"),
        [
            ([{"id": 3}, {"id": 5}], ["3", "5"]),
            ([{"id": "a"}, {"id": "a"}], ["mine-0", "mine-1"]),
            ([{"id": 1}, {"id": "1"}], ["mine-0", "mine-1"]),
            ([{"id": "a"}, {}], ["mine-0", "mine-1"]),
            ([{"id": "a"}, {"id": ""}], ["mine-0", "mine-1"]),
            ([{"id": True}, {"id": False}], ["mine-0", "mine-1"]),
            ([{"id": 1, "unique_id": "x"}, {"id": 1, "unique_id": "y"}], ["x", "y"]),
            ([{"problem_id": "x"}, {"problem_id": "y"}], ["x", "y"]),
        ],
    )
    def test_ids(self, tmp_path, columns, ids):
        path = write(tmp_path / "mine.jsonl", *({"question": "q", "answer": "a"} | own for own in columns))
        assert [problem.id for problem in load_problem_file(path)] == ids

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "mine.jsonl: holds no problems"),
            ('{"question": "q", "answer": "a"}\n{"question": ', r"mine.jsonl, line 2: not valid JSON \("),
            ("[1]\n", r"mine.jsonl, line 1: must be an object with named columns, got \[1\]"),
            ('{"question": "q", "answer": "a"}\n\n{"question": " ", "answer": "a"}', "line 3: 'question' is empty"),
            ('{"question": "q", "answer": ""}', "line 1: 'answer' is empty"),
            ('{"question": "q", "answer": null}', "line 1: 'answer' must be text or a number, got None"),
            ('{"question": "q", "answer": true}', "line 1: 'answer' must be text or a number, got True"),
            ('{"question": "q", "answer": NaN}', "line 1: 'answer' must be text or a number, got nan"),
            ('{"question": "q", "answer": Infinity}', "line 1: 'answer' must be text or a number, got inf"),
            ('{"question": "q", "answer": -Infinity}', "line 1: 'answer' must be text or a number, got -inf"),
            (
                '{"question": "q\\ud800", "answer": "a"}',
                r"line 1: 'question' holds half of a surrogate pair \('\\ud800', character 2\)",
            ),
            ('{"question": "q", "answer": "\\udfff"}', "line 1: 'answer' holds half of a surrogate pair"),
            ('{"question": "q", "answer": "a", "id": "\\udfff"}', "line 1: the id holds half of a surrogate pair"),
            ('{"question": "q", "answer": ["1"]}', r"line 1: 'answer' must be text or a number, got \['1'\]"),
            ('{"question": "q", "answer": "so ####"}', "line 1: 'answer' ends without an answer"),
            ('{"question": "q", "solution": "so 7"}', r"line 1: 'solution' boxes no answer; .*\(--answer-column\)"),
            (
                '{"question": "q", "answer": "a"}\n{"question": "q"}',
                r"line 2: no column 'answer' \(columns: question\)",
            ),
            ('{"ask": "q", "answer": "a"}', r"no column has a name of questions; .*\(columns: ask, answer\)"),
            ('{"question": "q", "result": "a"}', r"no column has a name of answers; .*--answer-column .*result"),
            (
                '{"question": "q", "problem": "q", "answer": "a"}',
                "question and problem may hold the question; .*--question",
            ),
            (
                '{"question": "q", "answer": "a", "target": "b"}',
                "answer and target may hold the answer; .*--answer-column",
            ),
        ],
    )
    def test_bad_records(self, tmp_path, text, message):
        path = tmp_path / "mine.jsonl"
        path.write_text(text)
        with pytest.raises(TaskError, match=message) as caught:
            load_problem_file(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("mine.txt", b"", "mine.txt: a problem file ends in .jsonl, .json, .csv, .parquet"),
            ("mine.csv", b"question,answer\n1,2,3\n", "mine.csv, line 2: not as many fields as the header has"),
            ("mine.csv", b"question,answer\n1\n", "mine.csv, line 2: not as many fields as the header has"),
            ("mine.csv", b'question,answer\n"a"b,2\n', "mine.csv, line 2: not valid CSV"),
            ("mine.csv", b"question,answer\n", "mine.csv: holds no problems"),
            ("mine.csv", b"", "mine.csv: holds no problems"),
            (
                "mine.csv",
                b"question,answer,answer\n1,2,3\n",
                "mine.csv, line 1: the header has column 'answer' more than once",
            ),
            ("mine.json", b"[1, 2", r"mine.json: not valid JSON \("),
            ("mine.json", b"[1]", "mine.json, record 1: must be an object"),
            ("mine.jsonl", b'{"question": "\xff"}', r"mine.jsonl: not UTF-8 text \(byte 14\)"),
            ("mine.parquet", b"PAR1", r"mine.parquet: not a Parquet file \("),
        ],
    )
    def test_bad_files(self, tmp_path, name, data, message):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TaskError, match=message) as caught:
            load_problem_file(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(TaskError, match=r"none\.jsonl: no such file"):
            load_problem_file(tmp_path / "none.jsonl")
        with pytest.raises(TaskError, match="at least 1, got 0"):
            load_problem_file(write(tmp_path / "m.jsonl", {"question": "q", "answer": "a"}), limit=0)


class TestHub:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        """An empty cache of the hub's, and no network."""
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        return tmp_path

    def store(self, cache, repository, name, write_to):
        """Puts a data file where huggingface_hub keeps what it downloaded."""
        repository = cache / f"datasets--{repository.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text("0" * 40)
        path = repository / "snapshots" / ("0" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(path)

    def test_from_the_cache_without_a_network(self, cache):
        records = [{"id": index, "problem": f"{index}?", "answer": str(index)} for index in range(60, 90)]
        table = pd.DataFrame(records)
        self.store(cache, "HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet", table.to_parquet)
        problems = load_problems("aime24", limit=3)
        assert problems == [Problem(str(index), f"{index}?", str(index)) for index in (60, 61, 62)]

    @real_sets
    def test_hub_and_file_give_the_same_problems(self, cache):
        text = (SETS / "gsm8k_test.jsonl").read_text(encoding="utf-8")
        self.store(cache, "InfiniAILab/gsm8k", "test.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
        assert load_problems("gsm8k") == load_problem_file(SETS / "gsm8k_test.jsonl", task="gsm8k")

    def test_another_number_of_problems_is_refused(self, cache):
        self.store(
            cache, "math-ai/amc23", "test.jsonl", lambda path: write(path, {"id": 0, "question": "q", "answer": 1})
        )
        with pytest.raises(TaskError, match="math-ai/amc23: 1 problems in split test, amc23 has 40"):
            load_problems("amc23")

    def test_without_network_and_cache(self, tmp_path):
        """In a process of its own, against a port where nobody listens."""
        code = "from kinetics_jax.tasks.problems import load_problems; load_problems('aime25')"
        environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert time.monotonic() - began < 20
        last = done.stderr.strip().splitlines()[-1]
        assert "TaskError: math-ai/aime25: not on disk, and the hub cannot be reached" in last

    @pytest.mark.parametrize(
        ("files", "split", "found"),
        [
            (["README.json", "test.jsonl", "train.jsonl"], "test", ["test.jsonl"]),
            (["test.parquet", "test.jsonl"], "test", ["test.jsonl"]),
            (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0.parquet"], "train",
             ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
            (["test/0.json", "train/0.json"], "test", ["test/0.json"]),
            (["gsm8k_test.jsonl", "latest.jsonl"], "test", ["gsm8k_test.jsonl"]),
        ],
    )  # fmt: skip
    def test_split_files(self, tmp_path, files, split, found):
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        chosen = split_files(tmp_path, split, "a/b")
        assert [path.relative_to(tmp_path).as_posix() for path in chosen] == found

    def test_splits_that_are_not_there_or_twice(self, tmp_path):
        (tmp_path / "train.csv").touch()
        with pytest.raises(TaskError, match=r"a/b: no data file of split 'test' in .* \(files: train.csv\)"):
            split_files(tmp_path, "test", "a/b")
        for folder in ("main", "socratic"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "test.parquet").touch()
        with pytest.raises(TaskError, match=r"'test' is in several folders \(main, socratic\)"):
            split_files(tmp_path, "test", "a/b")
