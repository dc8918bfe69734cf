"""All five published problem sets, sampled and graded end to end by a tiny random Qwen3 with the real tokenizer."""

import json
import shutil

import pytest
from paths import SHARED
from tiny import tiny_config, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.runs.best_of_n import best_of_n, grade_again
from kinetics_jax.settings import EngineSettings
from kinetics_jax.tasks.problems import load_problem_file
from kinetics_jax.tasks.prompts import render_prompts

DATA = SHARED
FILES = {
    "aime24": "aime24.jsonl",
    "aime25": "aime25.jsonl",
    "amc23": "amc23.jsonl",
    "math500": "math500.json",
    "gsm8k": "gsm8k_test.jsonl",
}
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the published problem sets are not on this machine")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    config = tiny_config(
        vocab_size=151_936,
        tie_word_embeddings=True,
        eos_token_id=[151_645, 151_643],
        max_position_embeddings=4096,
    )
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen3"), config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "qwen3-tokenizer" / name, folder)
    return kj.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", FILES)
def test_sampled_and_graded(lm, tmp_path, task):
    problems = load_problem_file(DATA / "problems" / FILES[task], task=task, limit=6)
    prompts = render_prompts(problems, lm.directory, task=task)
    assert all(prompt.startswith("<|im_start|>user\n") for prompt in prompts.values())
    run = best_of_n(
        lm,
        problems,
        task=task,
        n=2,
        policy=kj.BlockTopK(pages=4, page_size=16),
        sampling=kj.Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=8),
        out=tmp_path / "run",
        prompts=prompts,
        settings=EngineSettings(slots=4),
    )
    assert len(run.samples) == 12
    assert {record["grader"] for record in run.samples} == {"ok"}
    assert {record["correct"] for record in run.samples} == {False}  # noise
    for record in run.samples:
        assert record["prompt_tokens"] == len(lm.encode(prompts[record["problem"]]))
        assert lm.decode(record["output_tokens"]) == record["text"]
    # The known answer, given as a model would give it, is right.
    answered = [
        {**record, "text": f"<think>\n…\n</think>\n\nIt is \\boxed{{{run.problems[record['problem']]['answer']}}}."}
        for record in run.samples
    ]
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answered))
    graded, changed = grade_again(tmp_path / "run")
    assert {(record["correct"], record["grader"]) for record in graded.samples} == {(True, "ok")}
    assert len(changed) == 12
