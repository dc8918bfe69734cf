"""compare_backends.py: options and patterns, backends of one's own, what a recording says of itself, tables to cite."""

import json
import os
import shutil
import subprocess
import types
from pathlib import Path

import compare_backends
import float64_ops
import jax
import numpy as np
import pytest
from backend_comparison import accuracy, cases, circumstances, cited
from backend_comparison.recording import ComparisonError, Recording, read_recording
from kernel_bench import oracle as kernel_oracle
from kinetics_kernels import kernel_files
from paths import ROOT

import kinetics_jax as kj
from kinetics_jax.assets import ASSETS
from kinetics_jax.stats.intervals import accuracy_interval
from kinetics_jax.tasks.problems import load_problems

TIES = ["--model", "none", "--only", "ties"]


@pytest.fixture(scope="module")
def ties(tmp_path_factory) -> Path:
    """The selections with many equal scores, by the reference."""
    out = tmp_path_factory.mktemp("recordings") / "ties"
    assert compare_backends.main(["record", str(out), *TIES]) == 0
    return out


@pytest.mark.slow
def test_options_reach_the_kernels_by_name(ties, tmp_path, capsys, monkeypatch):
    """Of the ops that take them; a spelling of backends for each op, and several patterns of states."""
    seen = []
    monkeypatch.setattr(compare_backends, "record_ops", lambda states, **asked: seen.append((states, asked)))
    only = ["--only", "ties,*page8*dim64", "--only", "long"]
    backend = ["--backend", "select_pages=xla,paged_decode=triton", "--interpret", "--option", "tokens=32"]
    more = [*only, *backend, "--option", "paged_decode.splits=2", "--model", "none"]
    with pytest.raises(TypeError, match="NoneType"):
        compare_backends.main(["record", str(tmp_path / "out"), *more])
    ((states, asked),) = seen
    assert asked["backend"] == "select_pages=xla,paged_decode=triton:tokens=32:splits=2"
    kinds = [(state.kind, state.page_size, state.head_dim) for state in states]
    assert {kind[1:] for kind in kinds if kind[0] == "ragged"} == {(8, 64)}
    assert {kind[0] for kind in kinds} == {"ragged", "ties", "long"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--option", "tokens"], "option 'tokens': option 'tokens' is not NAME=VALUE"),
        (
            ["--option", "tokns=32"],
            "no kernel chosen takes tokns; options of append_kv (triton): none; select_pages (tri",
        ),
        (["--option", "append_kv.tokens=32"], "no kernel chosen takes tokens; options of append_kv (triton): none"),
        (["--option", "append.tokens=32"], "'append' is no op (append_kv, select_pages, paged_decode)"),
        (["--option", "tokens=32", "--option", "tokens=64"], "tokens of paged_decode is given twice"),
        (["--kernels", "no_such_kernels"], "no_such_kernels cannot be imported"),
        (["--only", "ties", "--only", "page7"], "no state's name contains 'page7'"),
        (["--accuracy", "2"], "--accuracy needs a checkpoint"),
        (["--accuracy", "-1"], "--accuracy and --task-problems count samples and problems"),
        (["--backend", "append_kv=xla,paged_decode=cuda"], "paged_decode: backend 'cuda' is not known"),
    ],
)
def test_options_are_checked_by_name(tmp_path, capsys, options, said):
    command = ["record", str(tmp_path / "out"), "--model", "none", "--backend", "triton", "--interpret"]
    assert compare_backends.main([*command, *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


OWN = """
from kinetics_kernels import reference

def select_pages(q, summaries, page_table, lengths, *, page_size, pages, sink_pages=1, recent_pages=1, summary="mean",
                 scale=None, scores=None, away=0.0):
    q = q + away
    return reference.select_pages(q, summaries, page_table, lengths, page_size=page_size, pages=pages,
                                  sink_pages=sink_pages, recent_pages=recent_pages, summary=summary)
"""


@pytest.mark.slow
def test_a_backend_of_ones_own_is_compared_and_three_recordings_are_cited(ties, tmp_path, monkeypatch, capsys):
    """A file, written as kernels/README.md says; an option of it that spoils its choice is beyond the bounds."""
    (tmp_path / "own_kernels" / "select_pages").mkdir(parents=True)
    (tmp_path / "own_kernels" / "select_pages" / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(kernel_files, "_packages", [*kernel_files._packages])
    own = ["--kernels", "own_kernels", "--backend", "select_pages=own", *TIES]
    for name, more in (("own", []), ("spoilt", ["--option", "away=0.5"])):
        assert compare_backends.main(["record", str(tmp_path / name), *own, *more]) == 0
    index = read_recording(tmp_path / "spoilt").index
    assert index["ops"]["backends"]["select_pages"] == {"backend": "own:away=0.5", "why": "forced"}
    assert compare_backends.main(["compare", str(ties), str(tmp_path / "own")]) == 0
    capsys.readouterr()
    three = [str(ties), str(tmp_path / "own"), str(tmp_path / "spoilt")]
    assert compare_backends.main(["compare", *three, "--format", "markdown", "--json", str(tmp_path / "j.json")]) == 1
    table = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in table.splitlines() if line}
    assert rows["select_pages: cases"] == ["2 of 2", "2 of 2"]
    assert rows["select_pages: pages in common, worst"][0] == "1"
    assert float(rows["select_pages: pages in common, worst"][1]) < 1
    assert rows["beyond the bounds"][0] == "0"
    assert int(rows["beyond the bounds"][1]) > 0
    assert "select_pages own:away=0.5" in rows["backend"][2]
    assert rows["revision"] == [index["revision"]] * 3
    assert rows["matmul precision"] == [jax.config.jax_default_matmul_precision or "default"] * 3
    found = json.loads((tmp_path / "j.json").read_text())
    assert [each["within"] for each in found["comparisons"]] == [True, False]
    assert found["within"] is False
    assert found["a"]["threads"] == index["threads"]
    assert compare_backends.main(["compare", *three, "--format", "latex"]) == 1
    text = capsys.readouterr().out
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"select\_pages: cases & 2 of 2 & 2 of 2 \\" in text


def test_float64_has_no_last_kind_of_summary():
    """What is compared with knows three kinds, and takes a fourth for none of them."""
    keys = np.zeros((2, 4, 8))
    for summary_of in (cases.summary_of, kernel_oracle.summary_of):
        with pytest.raises(ValueError, match=r"summary 'median' has no float64 rule here .there are: mean, min_max"):
            summary_of(keys, "median")
    with pytest.raises(ValueError, match="summary 'median' has no float64 rule here"):
        float64_ops.score_terms(np.zeros((1, 2, 8)), np.zeros((2, 3, 2, 8)), np.zeros((1, 3), int), "median")


def test_text_is_escaped_for_both_forms():
    table = [["a|b", "50%"], ["--xla_gpu=1", "x^2 & ~{y}\\"]]
    assert cited.markdown("t", table).splitlines()[2] == r"| a\|b | 50% |"
    assert r"a|b & 50\% \\" in cited.latex("t_1", table)
    assert r"-{}-xla\_gpu=1 & x\textasciicircum{}2 \& \textasciitilde{}\{y\}\textbackslash{} \\" in cited.latex(
        "t", table
    )
    assert r"\caption{t\_1}" in cited.latex("t_1", table)


@pytest.mark.slow
def test_a_recording_of_the_first_schema_is_still_read(ties, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(ties, old)
    index = json.loads((old / "index.json").read_text())
    for name in ("revision", "variables", "matmul_precision", "threads"):
        del index[name]
    index["device"] = {name: index["device"][name] for name in ("platform", "kind", "machine")}
    (old / "index.json").write_text(json.dumps(index | {"schema": 1}))
    assert compare_backends.main(["compare", str(old), str(ties)]) == 0
    assert "revision not recorded" in capsys.readouterr().out
    assert compare_backends.main(["compare", str(old), str(ties), "--format", "markdown"]) == 0
    assert "| threads | not recorded |" in capsys.readouterr().out


@pytest.mark.slow
def test_circumstances_are_those_of_the_process(monkeypatch):
    found = circumstances.circumstances()
    assert found["threads"] == {"usable": len(os.sched_getaffinity(0)), "of": os.cpu_count()}
    assert found["variables"].get("XLA_FLAGS") == os.environ.get("XLA_FLAGS")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if commit:
        assert found["revision"].split(",")[0] == f"git {commit.strip()}"
    monkeypatch.setattr(circumstances, "ROOT", Path("/nowhere"))
    assert circumstances.revision() == f"kinetics_jax {found['versions']['kinetics_jax']}"
    gpu = types.SimpleNamespace(platform="gpu", client=types.SimpleNamespace(platform_version="cuda 13000\nPJRT"))
    monkeypatch.setattr(circumstances.shutil, "which", lambda name: name)
    monkeypatch.setattr(circumstances, "_output", lambda *command: "580.65.06\n580.65.06")
    assert circumstances.driver(gpu) == "cuda 13000, PJRT, NVIDIA driver 580.65.06"


def graded(path: Path, right: list[int], **changes) -> Recording:
    about = {"task": "builtin", "problems": "digest", "samples": 4, "temperature": 1.0, "max_tokens": 12, "seed": 0}
    accuracy_of = about | {"right": {"dense": right}} | changes
    return Recording(path, {"model": {"name": "tiny", "accuracy": accuracy_of}}, {})


def test_accuracy_has_intervals_and_a_difference_beyond_them_is_named():
    a = graded(Path("a"), [4, 3, 4, 2] * 8)
    (row,) = accuracy.compare_accuracy(a, graded(Path("b"), [4, 2, 4, 3] * 8))
    assert (row["accuracy_a"], row["accuracy_b"], row["apart"], row["beyond"]) == (0.8125, 0.8125, 0, [])
    assert (row["low_a"], row["high_a"]) == accuracy_interval(np.array([4, 3, 4, 2] * 8) / 4)
    assert row["apart_low"] < 0 < row["apart_high"]
    (other,) = accuracy.compare_accuracy(a, graded(Path("c"), [1, 0, 1, 0] * 8))
    assert [line.split(", 95%")[0] for line in other["beyond"]] == ["B is -0.688 from A"]
    assert other["apart_high"] < 0
    assert accuracy.compare_accuracy(a, Recording(Path("none"), {}, {})) == []
    cells = cited.differences([row])
    assert cells["average accuracy dense, apart"].startswith("0.000 [-0.")
    assert cells["average accuracy dense, the first (32 problems of builtin, 4 samples each)"].startswith("0.812 [0.7")
    with pytest.raises(ComparisonError, match="a and d have different inputs: seed of the accuracy"):
        accuracy.compare_accuracy(a, graded(Path("d"), [4] * 32, seed=1))


def test_accuracy_is_recorded_for_every_policy():
    """N samples of each problem, by the task's own grader: here the model solves the second problem in two of three."""
    problems = load_problems("builtin", limit=2)

    def generate(prompts, n, sampling, attention):
        assert (len(prompts), n, sampling.temperature) == (2, 3, 0.5)
        right = {(1, 0), (1, 2)} if isinstance(attention, kj.Dense) else set()
        pairs = [(problem, sample) for problem in range(2) for sample in range(3)]
        return [
            types.SimpleNamespace(
                problem=problem, text=rf"\boxed{{{problems[problem].answer}}}" if pair in right else "x"
            )
            for pair in pairs
            for problem in pair[:1]
        ]

    lm = types.SimpleNamespace(directory=ASSETS / "chase-131k", encode=lambda text: [1, 2], generate=generate)
    sparse = kj.parse_policy("block_topk:pages=4")
    drawn = kj.Sampling(temperature=0.5, max_tokens=2, seed=0)
    found = accuracy.record_accuracy(lm, "builtin", 2, 3, [kj.Dense(), sparse], drawn, lambda line: None)
    assert found["right"] == {"dense": [0, 2], str(sparse): [0, 0]}
    assert (found["samples"], found["temperature"], found["max_tokens"]) == (3, 0.5, 2)
