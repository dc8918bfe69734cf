"""compare_backends.py: a backend against itself, against a spoilt copy, and what it must refuse."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import compare_backends
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_comparison import oracle
from backend_comparison.cases import DTYPES, SUMMARIES, all_states, cases_of, inputs_of, summary_of
from backend_comparison.recording import ComparisonError, Recording, arrays_sha256, read_recording, write_recording
from backend_comparison.ulps import ordered, row_ulps, same_bits, ulp_distance, ulp_size
from hypothesis import given
from hypothesis import strategies as st
from paths import BENCHMARKS, ROOT
from tiny import tiny_config, write_checkpoint

pytestmark = pytest.mark.slow

SMALL = ["--only", "float32-page8-group4"]
STATE = "ragged-float32-page8-group4-dim128"
BUILTIN = ROOT / "kinetics_jax" / "assets" / "chase-131k"
SPARSE = "block_topk:budget=32,page_size=8"
TIES = ["--model", "none", "--only", "ties"]
floats = st.floats(width=32)
bfloat16 = DTYPES["bfloat16"]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """One state's cases and a little decoding by one random layer, which reads the built-in problems."""
    config = tiny_config(
        num_hidden_layers=1, vocab_size=json.loads((BUILTIN / "config.json").read_text())["vocab_size"]
    )
    model = write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, model / name)
    decoding = ["--model", str(model), "--problems", "2", "--samples", "1", "--max-tokens", "12"]
    return ["--backend", "xla", *SMALL, *decoding, "--attention", f"{SPARSE},dense_layers=none"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, command) -> Path:
    """What the reference gives."""
    out = tmp_path_factory.mktemp("recordings") / "xla"
    assert compare_backends.main(["record", str(out), *command]) == 0
    return out


@pytest.fixture(scope="module")
def ties(tmp_path_factory) -> Path:
    """The selections with many equal scores, by the reference."""
    out = tmp_path_factory.mktemp("recordings") / "ties"
    assert compare_backends.main(["record", str(out), *TIES]) == 0
    return out


def spoilt(recorded: Path, tmp_path: Path, name: str, spoil) -> Path:
    """The recording again, whole, with one array changed by `spoil(array)` in place."""
    recording = read_recording(recorded)
    arrays = {key: array.copy() for key, array in recording.arrays.items()}
    spoil(arrays[name])
    index = {key: value for key, value in recording.index.items() if key not in ("schema", "arrays", "arrays_sha256")}
    write_recording(tmp_path / "spoilt", index, arrays)
    return tmp_path / "spoilt"


def compared(capsys, a: Path, b: Path) -> tuple[int, dict, str]:
    """Exit code, JSON and table of a comparison."""
    capsys.readouterr()
    code = compare_backends.main(["compare", str(a), str(b), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_a_backend_equals_itself(recorded, command, tmp_path, capsys):
    out = tmp_path / "again"
    assert compare_backends.main(["record", str(out), *command]) == 0
    code, found, table = compared(capsys, recorded, out)
    assert code == 0, table
    assert found["within"]
    assert found["a"]["ops"]["backends"]["paged_decode"] == {"backend": "xla", "why": "forced"}
    assert {row["op"] for row in found["ops"]} == {"append_kv", "select_pages", "paged_decode", "block_topk_decode"}
    for row in found["ops"]:
        assert row["status"] == "compared"
        assert row["equal_rows"] == 1
        if row["op"] == "select_pages":
            assert row["overlap_worst"] == row["overlap_float64_a"] == 1
        else:
            assert row["max_ulp"] == row["row_ulp"] == 0
            assert 0 < row["error_a"] == row["error_b"] < 64
    rows = {row["what"]: row for row in found["model"]}
    assert rows["logits dense"]["difference"] == 0
    assert 0 < rows["logits dense"]["from_full_a"] < 1e-4
    for policy in ("dense", f"{SPARSE},dense_layers=none"):
        for what, samples in (("greedy", 2), ("sampled", 2)):
            row = rows[f"{what} tokens {policy}"]
            assert (row["identical"], row["samples"], row["diverged"]) == (1, samples, [])
            assert row["least_lead_a"] > 0  # the replay of the engine's samples draws what the engine drew
    assert "all within" in table


def change_out(array):
    array[0, 3, 5] += 1e-3


def write_elsewhere(array):
    array[1, 0, 0, 0] = 2.0


def choose_other(array):
    """The first chosen page gives way to one that scores otherwise."""
    array[0, 1, 1] = array[0, 1, 2]


def lose_an_infinity(array):
    array[3, 0] = 0.0  # an idle sequence


def draw_other(array):
    array[1, 0, 4] += 1


SPOILT = [
    (f"outputs/{STATE}/paged_decode-table_per_head/out", change_out, "paged_decode table_per_head"),
    (f"outputs/{STATE}/paged_decode-table_per_sequence/lse", lose_an_infinity, "paged_decode table_per_sequence"),
    (f"outputs/{STATE}/append_kv-mean_std/v_pages", write_elsewhere, "append_kv mean_std"),
    (f"outputs/{STATE}/select_pages-min_max/selected", choose_other, "select_pages min_max"),
    (f"outputs/{STATE}/block_topk_decode-mean/out", change_out, "block_topk_decode mean"),
    ("model/logits/full", lambda logits: logits.__setitem__((0, 0), 0.5 + logits[0, 0]), "tiny logits full"),
    ("model/tokens/dense", draw_other, "tiny greedy tokens dense"),
]


@pytest.mark.parametrize(("name", "spoil", "named"), SPOILT, ids=[named for *_, named in SPOILT])
def test_a_spoilt_recording_is_named(recorded, tmp_path, capsys, name, spoil, named):
    code, found, table = compared(capsys, recorded, spoilt(recorded, tmp_path, name, spoil))
    assert code == 1
    assert not found["within"]
    complaints = [line for line in table.splitlines() if line.startswith("BEYOND: ")]
    assert complaints
    assert all(line.startswith(f"BEYOND: {named}") for line in complaints)
    assert sum(bool(row["beyond"]) for row in (*found["ops"], *found["model"])) == 1
    if name.startswith("model/tokens"):
        row = next(row for row in found["model"] if row["beyond"])
        assert [(each["problem"], each["sample"], each["position"]) for each in row["diverged"]] == [(1, 0, 4)]


def test_pages_that_only_rounding_tells_apart_may_swap(recorded):
    """Two pages of equal score but for rounding: the swap is within the bound; any other page is not."""
    case = next(case for case in cases_of(all_states()[1]) if case.op == "select_pages" and case.variant == "mean")
    inputs = dict(read_recording(recorded).group(f"inputs/{STATE}"))
    summaries = inputs["mean_summaries"] = inputs["mean_summaries"].copy()
    first, second = (int(page) for page in inputs["page_table"][0, 3:5])
    summaries[0, second] = summaries[0, first] * np.float32(1 + 2**-22)
    gap, allowed = oracle.score_gap(case, inputs, "mean", 0, 0, {first, second})
    assert 0 < gap < allowed
    gap, allowed = oracle.score_gap(case, inputs, "mean", 0, 0, {first, int(inputs["page_table"][0, 6])})
    assert gap > allowed
    assert oracle.score_gap(case, inputs, "mean", 0, 0, {int(inputs["page_table"][0, 0]), first})[0] == np.inf


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "arrays.npz").unlink(), "incomplete: there is no arrays.npz"),
        (lambda path: (path / "arrays.npz").write_bytes((path / "arrays.npz").read_bytes()[:-7]), "arrays.npz is torn"),
        (lambda path: (path / "index.json").write_text('{"schema": 1, '), "index.json is torn"),
        (lambda path: (path / "index.json").write_text('{"schema": 99}'), "has schema 99, this is 2"),
        (shutil.rmtree, "holds no recording"),
    ],
    ids=["no arrays", "cut arrays", "cut index", "schema", "nothing"],
)
def test_a_torn_recording_is_refused(recorded, tmp_path, capsys, spoil, said):
    torn = tmp_path / "torn"
    shutil.copytree(recorded, torn)
    spoil(torn)
    code, _, err = compared(capsys, recorded, torn)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_recording_is_written_whole_or_not_at_all(recorded, tmp_path, monkeypatch):
    with pytest.raises(ComparisonError, match="already holds a recording"):
        write_recording(recorded, {}, {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ComparisonError, match="not an empty folder"):
        write_recording(tmp_path, {}, {})

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_recording(tmp_path / "out", {}, {"x": np.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_inputs_are_refused(recorded, ties, tmp_path, capsys):
    assert compare_backends.main(["record", str(tmp_path / "seed"), *TIES, "--seed", "1"]) == 0
    recording = read_recording(recorded)
    index = json.loads(json.dumps(recording.index))
    index["model"]["samples"] = 2
    write_recording(tmp_path / "samples", index, recording.arrays)
    pairs = [
        (ties, tmp_path / "seed", "seed of the op cases"),
        (ties, recorded, "states of the op cases"),
        (recorded, tmp_path / "samples", "samples of the model"),
    ]
    for a, b, what in pairs:
        code, _, err = compared(capsys, a, b)
        assert code == 2
        assert f"have different inputs: {what}" in err
        assert len(err.splitlines()) == 1
    name = next(name for name in recording.arrays if name.startswith("inputs/"))
    digest = digest_of_inputs(recording.arrays | {name: recording.arrays[name] + 1})
    assert digest != digest_of_inputs(recording.arrays) == recording.index["ops"]["inputs_sha256"]


def digest_of_inputs(arrays) -> str:
    return arrays_sha256({name: array for name, array in arrays.items() if name.startswith("inputs/")})


def test_a_case_that_fails_or_is_refused_costs_no_other(ties, tmp_path, capsys, monkeypatch):
    from kinetics_kernels import reference

    def broken(*_, **__):
        raise RuntimeError("CpuCallback error:\nout of shared memory")

    with monkeypatch.context() as patched:
        patched.setattr(reference, "select_pages", broken)
        assert compare_backends.main(["record", str(tmp_path / "failed"), *TIES]) == 1
    code, found, table = compared(capsys, ties, tmp_path / "failed")
    assert code == 1
    assert {row["status"] for row in found["ops"]} == {"failed"}
    assert "B failed: RuntimeError: out of shared memory" in table
    # Without a kernel of its own, an op is refused; when all are, there is nothing to compare.
    monkeypatch.setattr("kinetics_kernels.backends._has_kernel", lambda op, backend: False)
    refused = ["record", str(tmp_path / "refused"), "--backend", "triton", "--interpret", *TIES]
    assert compare_backends.main(refused) == 0
    code, _, err = compared(capsys, ties, tmp_path / "refused")
    assert code == 2
    assert "nothing to compare" in err


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU cannot run")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "cuda"], "backend 'cuda' is not known"),
        (["--backend", "triton"], "does not run on a cpu"),
        (["--interpret"], "name it with --backend"),
        (["--backend", "triton", "--interpret", "--model", "chase-131k"], "add --model none"),
        (["--only", "page7"], "no state's name contains 'page7'"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--attention", "sparse"], "'sparse' is not known"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, options, said):
    assert compare_backends.main(["record", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_exits_with_the_verdict_and_needs_no_more_than_the_kernels(recorded, ties, tmp_path):
    """The op part imports neither kinetics_jax nor what it depends on."""
    code = (
        "import sys, compare_backends; code = compare_backends.main(sys.argv[1:]); "
        "assert not {'kinetics_jax', 'flax', 'transformers', 'tyro'} & set(sys.modules); sys.exit(code)"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True)

    found = run("record", str(tmp_path / "ties"), *TIES)
    assert found.returncode == 0, found.stderr
    assert compare_backends.main(["compare", str(ties), str(tmp_path / "ties")]) == 0
    found = run("compare", str(recorded), str(spoilt(recorded, tmp_path, *SPOILT[0][:2])))
    assert found.returncode == 1, found.stderr


def test_triton_interpreted_stays_within_the_bounds(ties, tmp_path, capsys):
    record = ["record", str(tmp_path / "triton"), "--backend", "triton", "--interpret", *TIES]
    assert compare_backends.main(record) == 0
    code, found, table = compared(capsys, ties, tmp_path / "triton")
    assert code == 0, table
    assert {row["status"] for row in found["ops"]} == {"compared"}
    assert found["a"]["command"] == "compare_backends.py record ties --model none --only ties"
    assert found["a"]["ops"]["backends"]["select_pages"]["backend"] == "xla"  # the default, which says why
    assert found["a"]["ops"]["backends"]["select_pages"]["why"] != "forced"
    assert found["b"]["ops"]["backends"]["select_pages"] == {"backend": "triton", "why": "forced, interpreted"}


def test_every_pair_of_settings_meets_and_inputs_are_as_documented():
    states = [state for state in all_states() if state.kind == "ragged"]
    names = ("dtype", "page_size", "group", "head_dim")
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            met = {(getattr(state, one), getattr(state, other)) for state in states}
            assert len(met) == len({x for x, _ in met}) * len({y for _, y in met})
    assert {case.variant for state in states for case in cases_of(state) if case.op == "append_kv"} == set(SUMMARIES)
    state = states[1]
    arrays, again, other = inputs_of(state, 0), inputs_of(state, 0), inputs_of(state, 1)
    assert all(same_bits(arrays[name], again[name]).all() for name in arrays)
    assert not same_bits(arrays["q"], other["q"]).all()
    assert abs(float(arrays["q"].std()) - 1) < 0.05
    unused = np.setdiff1d(np.arange(arrays["k_pages"].shape[1]), arrays["page_table"])
    assert len(unused)
    assert np.isnan(arrays["k_pages"][:, unused]).all()
    tokens = np.isfinite(arrays["v_pages"][0, :, :, 0]).sum()
    assert tokens == sum(state.lengths)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=8))
def test_ulp_distance_counts_the_floats_between(pairs):
    a, b = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    distance = ulp_distance(a, b)
    for x, y, found in zip(a, b, distance, strict=True):
        if np.isnan(x) and np.isnan(y):
            assert found == 0
        elif not (np.isfinite(x) and np.isfinite(y)):
            assert found == (0 if x == y else np.inf)
        else:
            assert (found == 0) == (x == y)
            assert found == abs(_rank(x) - _rank(y))
    np.testing.assert_array_equal(distance, ulp_distance(b, a))


def _rank(x: np.float32) -> int:
    """Floats between zero and x, with x's sign."""
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(x)))
    return -bits if x < 0 else bits


@given(floats.filter(lambda x: abs(x) < 3e38), st.integers(-5, 5))
def test_neighbours_are_one_apart(x, steps):
    a = b = np.array([x], np.float32)
    for _ in range(abs(steps)):
        b = np.nextafter(b, np.float32(np.inf if steps > 0 else -np.inf))
    assert ulp_distance(a, b) == abs(steps)
    assert ordered(b) - ordered(a) == steps


@given(st.integers(0, 0xFFFF))
def test_bfloat16_is_ordered_as_float32(bits):
    x = np.array([bits], np.uint16).view(bfloat16)
    if np.isfinite(x):
        assert ordered(x) * 65536 == ordered(x.astype(np.float32))
        if abs(float(x[0])) >= 2.0**-126:
            assert ulp_size(x.astype(np.float64), bfloat16) == 2.0 ** (np.frexp(float(x[0]))[1] - 8)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), bfloat16])
def test_ulp_size_is_the_spacing(dtype):
    for value in (0.0, 1.0, 1.5, 2.0, 1e-30, 3e38, float(jnp.finfo(dtype).smallest_subnormal)):
        x = np.array(value).astype(dtype)
        following = (ordered(x) + 1).astype({2: np.int16, 4: np.int32}[dtype.itemsize]).view(dtype)
        spacing = float(following) - float(x)
        assert ulp_size(np.float64(x), dtype) == ulp_size(-np.float64(x), dtype) == spacing


def test_zeros_infinities_and_rows():
    def distance(a, b):
        return float(ulp_distance(np.array(a, np.float32), np.array(b, np.float32)))

    assert distance(0.0, -0.0) == 0
    assert distance(1e-45, -1e-45) == 2
    assert distance(np.inf, np.inf) == 0
    assert distance(np.inf, -np.inf) == distance(np.inf, np.finfo(np.float32).max) == distance(np.nan, 1.0) == np.inf
    a = np.array([[1.0, 1e-6], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], [np.nan, 1.0]])
    b = np.array([[1.0, 1e-6 + 2**-23], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(row_ulps(a, b, np.float32), [1, 0, 0, 0, np.inf], rtol=1e-6)
    zeros = np.array([0.0, -0.0, np.nan], np.float32)
    assert same_bits(zeros, np.array([0.0, 0.0, -np.nan], np.float32)).tolist() == [True, False, True]


@given(st.integers(0, 2**32 - 1))
def test_exact_summaries_are_those_of_float64(seed):
    keys = np.random.default_rng(seed).integers(-3 << 20, 3 << 20, (2, 8, 4)) / 2.0**20
    expected = {
        "mean": keys.mean(axis=1),
        "min_max": np.stack([keys.min(axis=1), keys.max(axis=1)], axis=1),
        "mean_std": np.stack([keys.mean(axis=1), keys.std(axis=1)], axis=1),
    }
    for summary in SUMMARIES:
        np.testing.assert_allclose(summary_of(keys, summary), expected[summary], rtol=1e-12, atol=1e-12)


def test_groups_of_arrays_are_found_by_whole_names():
    recording = Recording(Path(), {}, {"a/b": np.zeros(1), "a/bc": np.ones(1), "ab/c": np.ones(1)})
    assert recording.group("a").keys() == {"b", "bc"}
