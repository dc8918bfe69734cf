"""Prompts by instruction, system text and template file."""

import json

import pytest
from tokenizers import Tokenizer, models

from kinetics_jax.tasks.problems import Problem, load_problem_file
from kinetics_jax.tasks.prompts import (
    INSTRUCTION,
    PAPER_INSTRUCTION,
    PromptError,
    PromptStyle,
    prompt_identity,
    render_prompts,
)

PROBLEMS = [
    Problem("a", "1+1?", "2", fields={"unit": "cm", "self": 1}),
    Problem("b", "2+2?", "4", fields={"unit": "m"}),
]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """Makes a checkpoint's directory with a chat template."""

    def make(chat_template):
        directory = tmp_path_factory.mktemp("checkpoint")
        Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "chat_template": chat_template}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        return directory

    return make


def render(directory, problems=PROBLEMS, **style):
    return render_prompts(problems, directory, task="mine.jsonl", style=PromptStyle(**style))


def test_instructions(tmp_path):
    assert render(tmp_path)["a"] == f"1+1?\n\n{INSTRUCTION}\n\n"
    assert render(tmp_path, instruction="Be brief.")["a"] == "1+1?\n\nBe brief.\n\n"
    assert render(tmp_path, instruction="")["a"] == "1+1?\n\n"
    paper = render(tmp_path, instruction="paper")["a"]
    assert paper == f"{PAPER_INSTRUCTION}\n\n1+1?\n\n"  # before the question, as the published code has it
    assert "final answer is: $\\boxed{ANSWER}$. I hope it is correct'" in paper
    with pytest.raises(
        PromptError, match="bare prompts are the question alone, without an instruction; take --template"
    ):
        render(tmp_path, template="bare", instruction="Be brief.")


def test_a_system_text_is_a_turn_of_the_chat(tmp_path, chatty):
    assert render(chatty(CHAT), system="Obey.")["a"] == f"<system>Obey.<user>1+1?\n\n{INSTRUCTION}<assistant>"
    with pytest.raises(PromptError, match="a system text stands in a chat template only, and prompts are plain"):
        render(tmp_path, system="Obey.")
    with pytest.raises(PromptError, match="its chat template has no place for a system text"):
        render(chatty("{{ messages[-1].content }}"), system="Obey.")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(PromptError, match=r"its chat template fails .*no system role"):
        render(chatty(refusing), system="Obey.")


def test_a_file_writes_the_prompt(tmp_path, chatty):
    file = tmp_path / "mine.j2"
    file.write_text(
        "In {{ unit }}: {{ question }}{% if choices %} of {{ choices|join('/') }}{% endif %} {{ problem.id }}\n"
    )
    assert render(tmp_path, file=file) == {"a": "In cm: 1+1? a", "b": "In m: 2+2? b"}
    assert render(tmp_path, file=file, template="bare")["a"] == "In cm: 1+1? a"
    assert render(chatty(CHAT), file=file)["b"] == "<user>In m: 2+2? b<assistant>"
    choice = [Problem("c", "which?", "A", choices=("x", "y"), fields={"unit": "m"})]
    assert render(tmp_path, choice, file=file)["c"] == "In m: which? of x/y c"
    file.write_text("{{ question }} {{ instruction }}")
    assert render(tmp_path, file=file)["a"] == f"1+1? {INSTRUCTION}"
    assert render(tmp_path, file=file, instruction="Go.")["a"] == "1+1? Go."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ question", "is no jinja2 template that can be read .TemplateSyntaxError"),
        ("{{ question }} {{ colour }}", "fails for problem 'a' .UndefinedError: 'colour' is undefined"),
        ("{{ question }} {{ answer }}", "fails for problem 'a' .UndefinedError: 'answer' is undefined"),
        ("{{ question.__class__ }}", "fails for problem 'a'"),
        ("{% include '/etc/passwd' %}{{ question }}", "fails for problem 'a'"),
        ("{{ unit }}", None),  # differs
        ("always", r"writes the same for problems 'a' and 'b'; put \{\{ question \}\} into it"),
        ("  ", "writes nothing for problem 'a'"),
        ("{% for i in range(10**9) %}{{ question }}{% endfor %}", "fails for problem 'a'"),
    ],
)
def test_a_file_that_cannot_be(tmp_path, text, why):
    file = tmp_path / "mine.j2"
    file.write_text(text)
    if why is None:
        assert render(tmp_path, file=file) == {"a": "cm", "b": "m"}
        return
    with pytest.raises(PromptError, match=f"mine.j2: {why}"):
        render(tmp_path, file=file)


def test_files_that_are_not_there_or_change_nothing(tmp_path):
    with pytest.raises(PromptError, match="no such file; --prompt-template takes a jinja2 template"):
        render(tmp_path, file=tmp_path / "none.j2")
    (tmp_path / "mine.j2").write_text("{{ question }}")
    with pytest.raises(PromptError, match=r"has no \{\{ instruction \}\}, so that --instruction would change nothing"):
        render(tmp_path, file=tmp_path / "mine.j2", instruction="Be brief.")
    (tmp_path / "mine.j2").write_bytes(b"\xff")
    with pytest.raises(PromptError, match="not UTF-8 text"):
        render(tmp_path, file=tmp_path / "mine.j2")


def test_what_run_json_says(tmp_path):
    file = tmp_path / "mine.j2"
    file.write_text("{{ question }}")
    assert prompt_identity(PromptStyle(), tmp_path, "builtin") == {"template": "bare"}
    said = prompt_identity(PromptStyle("plain", instruction="", file=file), tmp_path, "mine.jsonl")
    assert said["template"] == "plain"
    assert said["instruction"] == ""
    assert said["prompt_template"]["file"] == "mine.j2"
    file.write_text("{{ question }} ")
    assert prompt_identity(PromptStyle(file=file), tmp_path, "a")["prompt_template"] != said["prompt_template"]


def test_other_columns_are_kept_as_json_has_them(tmp_path):
    record = {"question": "q", "answer": 1, "tests": ["a", {"b": None}], "weight": 0.5, "id": "x"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    (problem,) = load_problem_file(tmp_path / "mine.jsonl")
    assert problem == Problem("x", "q", "1")
    assert problem.fields == {"tests": ["a", {"b": None}], "weight": 0.5, "id": "x"}
    assert problem.stored("p") == {
        **{"id": "x", "question": "q", "answer": "1", "prompt": "p"},
        "fields": {"tests": ["a", {"b": None}], "weight": 0.5, "id": "x"},
    }
    (tmp_path / "none.jsonl").write_text(json.dumps({"question": "q", "tests": "t"}))
    (problem,) = load_problem_file(tmp_path / "none.jsonl", needs_answers=False)  # as an own grader may have it
    assert (problem.answer, problem.fields) == ("", {"tests": "t"})


def test_columns_that_json_cannot_have(tmp_path):
    import numpy as np
    import pandas as pd

    table = {"question": ["q"], "answer": ["1"], "image": [b"\xff"], "at": [pd.Timestamp("2025-01-02")]}
    table |= {"missing": [np.nan], "list": [[1, 2]]}
    pd.DataFrame(table).to_parquet(tmp_path / "mine.parquet")
    (problem,) = load_problem_file(tmp_path / "mine.parquet")
    assert problem.fields == {"at": "2025-01-02T00:00:00", "missing": None, "list": [1, 2]}
