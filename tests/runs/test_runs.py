"""Best-of-N runs on a built-in model: records, continuation, and what a language model must have drawn."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers.processors import TemplateProcessing

import kinetics_jax as kj
from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.runs.best_of_n import best_of_n
from kinetics_jax.runs.folder import RECORD_FIELDS, TraceError
from kinetics_jax.settings import EngineSettings
from kinetics_jax.tasks.problems import TaskError, load_problems

SMALLEST = builtin_models()[0]
SAMPLING = kj.Sampling(temperature=0.9, top_k=40, top_p=0.97, max_tokens=72, seed=2)
SPARSE = kj.BlockTopK(budget=32, page_size=2, dense_layers=())


@pytest.fixture(scope="module")
def lm():
    return kj.load(SMALLEST, dtype="float32")


def run(lm, out, *, policy=SPARSE, n=2, limit=6, **changes):
    options = {"task": "builtin", "sampling": SAMPLING, "settings": EngineSettings(slots=8), **changes}
    return best_of_n(lm, load_problems("builtin", limit=limit), n=n, policy=policy, out=out, **options)


def stable(record: dict) -> dict:
    """A record without its wall time."""
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.slow
def test_a_run_folder_holds_what_design_says(lm, tmp_path):
    done = run(lm, tmp_path)
    assert {"schema", "model", "policy", "sampling", "task", "slots", "versions", "device", "git_revision"} <= set(
        done.header
    )
    assert done.header["policy"] == str(SPARSE)
    assert done.header["sampling"] == dataclasses.asdict(SAMPLING)
    assert len(done.samples) == 12
    for record in done.samples:
        problem = done.problems[record["problem"]]
        assert tuple(record) == RECORD_FIELDS
        assert set(problem) == {"id", "question", "answer", "prompt"}
        assert record["prompt_tokens"] == len(lm.encode(problem["prompt"]))
        assert record["text"] == lm.decode(record["output_tokens"])
        assert record["finish_reason"] in ("stop", "length")
        assert record["correct"] is (record["answer"] == problem["answer"])
        assert record["seconds"] > 0
        assert record["seed"] == 2


@pytest.mark.slow
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(lm, tmp_path):
    whole = run(lm, tmp_path / "whole")
    for stop in (0, 1, 7):
        folder = tmp_path / f"stopped{stop}"
        run(lm, folder)
        lines = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "samples.jsonl").write_bytes(b"".join(lines[:stop]))
        continued = run(lm, folder)
        assert (folder / "samples.jsonl").read_bytes().startswith(b"".join(lines[:stop]))

        def by_sample(each):
            return {(record["problem"], record["sample"]): stable(record) for record in each.samples}

        assert by_sample(continued) == by_sample(whole)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_and_another_does_not(lm, tmp_path):
    first, second = run(lm, tmp_path / "a"), run(lm, tmp_path / "b")
    assert list(map(stable, first.samples)) == list(map(stable, second.samples))
    other = run(lm, tmp_path / "c", sampling=dataclasses.replace(SAMPLING, seed=3))
    assert [record["output_tokens"] for record in other.samples] != [
        record["output_tokens"] for record in first.samples
    ]


def test_unknown_tasks_are_refused():
    with pytest.raises(TaskError, match="known: builtin"):
        load_problems("chess")
    with pytest.raises(TaskError, match="at least 1"):
        load_problems("builtin", limit=0)


def distributions(logits: np.ndarray, sampling: kj.Sampling) -> np.ndarray:
    """Next-token probabilities `[time, vocab]` after temperature, top-k and top-p, by sorting in float64."""
    rows = []
    for row in logits.astype(np.float64) / sampling.temperature:
        kept = row >= np.sort(row)[-sampling.top_k]
        weights = np.where(kept, np.exp(row - row.max()), 0)
        falling = np.argsort(-row)
        before = np.concatenate([[0], np.cumsum(weights[falling])])
        above = before[np.searchsorted(-row[falling], -row, side="left")]  # the weight of all likelier tokens
        weights = np.where(above < sampling.top_p * weights.sum() * (1 + 1e-6), weights, 0)
        rows.append(weights / weights.sum())
    return np.array(rows)


def check_teacher_forced(run_, forward) -> None:
    """Every token lies in its top-k/top-p set, and the mean surprise is the mean entropy within 4 standard errors."""
    surprises, entropies = [], []
    for record in run_.samples:
        prompt = run_.problems[record["problem"]]["prompt"]
        tokens = record["output_tokens"]
        probabilities = distributions(forward(prompt, tokens), SAMPLING)
        drawn = probabilities[np.arange(len(tokens)), tokens]
        assert (drawn > 0).all(), f"{record['problem']} drew a token outside its nucleus"
        surprises += (-np.log(drawn)).tolist()
        entropies += (-(probabilities * np.log(np.where(probabilities > 0, probabilities, 1))).sum(1)).tolist()
    difference = np.array(surprises) - np.array(entropies)
    error = difference.std() / np.sqrt(len(difference))
    assert len(difference) > 1000
    assert abs(difference.mean()) < 4 * error, f"{difference.mean():.4f} ± {error:.4f}"


@pytest.mark.slow
def test_samples_teacher_forced_through_our_full_forward(lm, tmp_path):
    done = run(lm, tmp_path, policy=kj.Dense(), limit=8, n=4)
    longest = max(record["prompt_tokens"] for record in done.samples)

    def forward(prompt: str, tokens: list[int]) -> np.ndarray:
        ids = lm.encode(prompt)
        padded = np.zeros((1, longest + SAMPLING.max_tokens), np.int32)  # one shape, since nothing sees what follows it
        padded[0, : len(ids) + len(tokens)] = ids + tokens
        return np.asarray(lm.logits(padded))[0, len(ids) - 1 : len(ids) + len(tokens) - 1]

    check_teacher_forced(done, forward)


@pytest.mark.slow
def test_samples_teacher_forced_through_transformers(lm, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(ASSETS / SMALLEST, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(ASSETS / SMALLEST)
    done = run(lm, tmp_path, policy=kj.Dense(), limit=8, n=4)

    def forward(prompt: str, tokens: list[int]) -> np.ndarray:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids == lm.encode(prompt)
        with torch.no_grad():
            return model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].numpy()

    check_teacher_forced(done, forward)
    for record in done.samples[:5]:
        assert tokenizer.decode(record["output_tokens"], skip_special_tokens=True) == record["text"]


@pytest.mark.slow
def test_generate_is_what_the_readme_shows(lm):
    question = load_problems("builtin", limit=1)[0].question
    samples = lm.generate([question, lm.encode(question)], n=2, sampling=SAMPLING, attention=SPARSE)
    assert [(sample.problem, sample.sample) for sample in samples] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(sample.text == lm.decode(sample.output_tokens) for sample in samples)
    assert json.dumps([dataclasses.asdict(sample) for sample in samples])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A checkpoint of our own: the smallest built-in model, that another file can take the place of."""
    return shutil.copytree(ASSETS / SMALLEST, tmp_path_factory.mktemp("own") / "mine")


SHORT = dataclasses.replace(SAMPLING, max_tokens=4)


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_weights(own, tmp_path):
    """Whichever tensor changed; nor by a folder of an earlier version, whose digest was of a sample of the bytes."""
    lm = kj.load(own, dtype="float32")
    begun = run(lm, tmp_path, limit=1, n=1, sampling=SHORT)
    assert begun.header["weights"] == lm.fingerprint
    old = {name: value for name, value in begun.header.items() if name not in ("digest", "prompt_ids")}
    old["weights"] = lm.sampled_fingerprint
    tensors = load_file(own / "model.safetensors")
    changed = {**tensors, "model.norm.weight": 3 * tensors["model.norm.weight"]}
    other = shutil.copytree(own, tmp_path.parent / "other" / "mine")
    save_file(changed, other / "model.safetensors")
    with pytest.raises(TraceError, match=r"holds another run \(weights: "):
        run(kj.load(other, dtype="float32"), tmp_path, limit=1, n=1, sampling=SHORT)
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert run(lm, tmp_path, limit=1, n=1, sampling=SHORT).samples == begun.samples
    with pytest.raises(TraceError, match=r"holds another run \(weights: "):
        run(kj.load(other, dtype="float32"), tmp_path, limit=1, n=1, sampling=SHORT)


def test_a_run_is_not_continued_with_other_prompts(own, tmp_path):
    """What the tokenizer adds is recorded; a folder of an earlier version has nothing added, and the lengths tell."""
    plain = kj.load(own, dtype="float32")
    begun = run(plain, tmp_path, limit=1, n=1, sampling=SHORT)
    other = shutil.copytree(own, tmp_path.parent / "others" / "mine")
    tokenizer = plain.tokenizer.from_file(str(other / "tokenizer.json"))
    first = tokenizer.id_to_token(0)
    tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    tokenizer.save(str(other / "tokenizer.json"))
    (other / "tokenizer_config.json").unlink()  # it says that none is added
    adding = kj.load(other, dtype="float32")
    with pytest.raises(TraceError, match=r"prompt_ids: .*special_tokens: null stored, \{\"before\": \[0\]"):
        run(adding, tmp_path, limit=1, n=1, sampling=SHORT)
    assert run(adding, tmp_path, limit=1, n=1, sampling=SHORT, add_special_tokens=False).samples == begun.samples
    old = {name: value for name, value in begun.header.items() if name not in ("digest", "prompt_ids")}
    (tmp_path / "run.json").write_text(json.dumps({**old, "weights": plain.sampled_fingerprint}))
    with pytest.raises(TraceError, match="special_tokens: null stored"):
        run(adding, tmp_path, limit=1, n=1, sampling=SHORT)
    (tmp_path / "samples.jsonl").write_text(json.dumps({**begun.samples[0], "prompt_tokens": 5}) + "\n")
    with pytest.raises(TraceError, match=r"the prompt of problem .* had 5 tokens, and now has"):
        run(plain, tmp_path, limit=1, n=1, sampling=SHORT)
    fresh = run(adding, tmp_path / "new", limit=1, n=1, sampling=SHORT)
    assert fresh.header["special_tokens"] == {"before": [0], "after": []}
    assert fresh.samples[0]["prompt_tokens"] == begun.samples[0]["prompt_tokens"] + 1
