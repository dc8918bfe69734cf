"""Every format of samples, read back from files written here; what is not there stays missing."""

import csv
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from paths import SHARED

from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.readers import read_all, read_samples
from kinetics_jax.analysis.samples import SamplesError, pooled
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.litesys_random_tokens import LiteSysRandomTokens
from kinetics_jax.attention.policies.litesys_strided_blocks import LiteSysStridedBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.runs.folder import RunWriter

QWEN = SHARED / "qwen3-tokenizer"
BLOCKS = {"attn_local": 0, "attn_block_topk": 64, "attn_block_size": 16, "attn_topk": None}


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sample(query, score, text="so \\boxed{3}", **more):
    return {"query": query, "choices": ["3"], "prediction": [text], "score": score, **more}


def tiny_tokenizer():
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_the_papers_files(tmp_path):
    first = write_lines(
        tmp_path / "aime24_qwen3-1-7b_local0_block16_blocktopk64.jsonl",
        BLOCKS,
        sample("What is one and two?", 100.0, "a b c"),
        sample("What is three?", 0.0, "a"),
        sample("What is one and two?", 0.0, "a b"),
    )
    run = read_samples(first, tokenizer=tiny_tokenizer())
    assert (run.model, run.config) == ("Qwen/Qwen3-1.7B", ModelConfig.named("1.7B"))
    assert run.attention == LiteSysBlockTopK(pages=64, page_size=16)
    assert run.problem == ["What is one and two?", "What is three?", "What is one and two?"]
    assert (run.output_tokens, run.prompt_tokens) == ([3, 1, 2], [85, 83, 85])
    assert run.correct == [True, False, False]
    second = write_lines(tmp_path / "more.jsonl", {**BLOCKS, "model": "1.7B"}, sample("What is three?", 100))
    runs = read_all([first, second], tokenizer=tiny_tokenizer())
    (pool,) = pooled([dataclasses.replace(run, task="") for run in runs])
    assert pool.problems["What is three?"].grades == [False, True]
    with pytest.raises(SamplesError, match="occurs twice"):
        pooled(read_all([first, first]))


@pytest.mark.parametrize(
    ("name", "task", "model"),
    [
        ("aime24_qwen3-1-7b_local0", "aime24", "Qwen/Qwen3-1.7B"),
        ("aime25_qwen3-30b-a3b_dense", "aime25", "Qwen/Qwen3-30B-A3B"),
        ("aime25_deepseek-ai_DeepSeek-R1-Distill-Qwen-1.5B", "aime25", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("deepseek-ai--DeepSeek-R1-Distill-Llama-70B", "", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
        ("gsm8k_r1-distill-llama-8b_local0_topk128", "gsm8k", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("aime24-qwen3_8b", "aime24", "Qwen/Qwen3-8B"),
        ("aime24_qwen3-8b-awq_dense", None, None),  # another model
        ("aime24_deepseek-r1-0528-qwen3-8b", None, None),
    ],
)  # fmt: skip
def test_a_files_name_says_task_and_model(tmp_path, name, task, model):
    path = write_lines(tmp_path / f"{name}.jsonl", {"attn_local": None}, sample("?", 0))
    if model is None:
        with pytest.raises(SamplesError, match="says which model"):
            read_samples(path)
        return
    run = read_samples(path)
    assert (run.task, run.model, run.config) == (task, model, ModelConfig.named(model))


def test_prompts_are_the_bare_question_where_asked(tmp_path):
    path = write_lines(tmp_path / "aime24_qwen3-8b.jsonl", {"attn_local": None}, sample("What is one and two?", 0))
    (run,) = read_all([path], tokenizer=tiny_tokenizer(), bare_questions=True)
    assert run.prompt_tokens == [5]


def published_layout(root, sets=("AIME24",)):
    for task in sets:
        for method, line in (("dense", {"attn_local": None}), ("topk", {"attn_local": 0, "attn_topk": 128})):
            (root / task / method).mkdir(parents=True)
            for size in ("0-6b", "8b"):
                write_lines(root / task / method / f"{task.lower()}_qwen3-{size}.jsonl", line, sample(f"{task}?", 100))
    return root


def test_the_layout_of_the_published_traces(tmp_path):
    """From the folder of a method, of a task, or of the one task that is there."""
    root = published_layout(tmp_path / "traces")
    (root / ".cache" / "old").mkdir(parents=True)
    write_lines(root / ".cache" / "old" / "aime24_qwen3-4b.jsonl", {"attn_local": None}, sample("?", 0))
    write_table(root / "AIME24" / "dense" / "aime24_qwen3-8b_ntrial_tradeoff.csv", [{"coverage": 1, "total_cost": 2}])
    (root / "AIME24" / "notes").mkdir()
    with pytest.warns(UserWarning, match="tradeoff.csv: a table of results"):
        whole = read_all([root / "AIME24"])
    with pytest.warns(UserWarning, match="tradeoff.csv: a table of results"):
        above = read_all([root])
    expected = {(f"Qwen/Qwen3-{size}", a) for size in ("0.6B", "8B") for a in ("dense", "token_topk:budget=128")}
    assert {(run.model, str(run.attention)) for run in whole} == expected
    assert len(whole) == len(above) == 4
    assert {run.model for run in read_all([root / "AIME24" / "topk"])} == {"Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"}


def test_what_a_directory_means_is_never_guessed(tmp_path):
    root = published_layout(tmp_path / "traces", ["AIME24", "AIME25"])
    with pytest.raises(SamplesError, match=r"traces: holds 2 sets of samples \(AIME24, AIME25\); name one"):
        read_all([root])
    write_lines(root / "AIME24" / "aime24_qwen3-4b.jsonl", {"attn_local": None}, sample("AIME24?", 0))
    with pytest.warns(UserWarning, match="its folders dense, topk hold samples too, which are left out"):
        assert [run.model for run in read_all([root / "AIME24"])] == ["Qwen/Qwen3-4B"]
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    with pytest.raises(SamplesError, match="nor a directory of runs or sample files"):
        read_all([tmp_path / "a"])


def test_a_config_of_a_published_model_must_agree_with_it(tmp_path):
    path = write_table(tmp_path / "t.csv", [row | {"model": "DeepSeek-R1-Distill-Llama-8B"} for row in ROWS])
    shape = ModelConfig.named("R1-Distill-Llama-8B")
    for given in (shape, {"R1-Distill-Llama-8B": shape}):
        assert read_all([path], config=given)[0].config == shape
    with pytest.raises(SamplesError, match="says num_layers 28, not 32 as the published model of that name has"):
        read_all([path], config=dataclasses.replace(shape, num_layers=28))


def test_without_a_tokenizer_tokens_are_missing(tmp_path):
    path = write_lines(tmp_path / "aime24_qwen3-8b_dense.jsonl", {"attn_local": None}, sample("?", 100))
    run = read_samples(path)
    assert (run.attention, run.output_tokens, run.prompt_tokens) == (Dense(), [None], [None])
    with pytest.raises(SamplesError, match="token counts are missing"):
        cost_frontier([run])


@pytest.mark.slow
@pytest.mark.skipif(not QWEN.exists(), reason="../shared/data/qwen3-tokenizer is not there")
def test_tokens_are_those_of_the_models_tokenizer(tmp_path):
    path = write_lines(
        tmp_path / "aime24_qwen3-8b_dense.jsonl",
        {"attn_local": None},
        sample("What is 1+1?", 100, "<think>\n2</think>"),
    )
    for tokenizer in (QWEN, QWEN / "tokenizer.json", str(QWEN)):
        run = read_samples(path, tokenizer=tokenizer)
        assert run.output_tokens == [4]  # <think>, the line's end, 2, </think>
        assert run.prompt_tokens == [87]
    assert cost_frontier([run, dataclasses.replace(run, sample=[9])])["accuracy"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("metadata", "policy"),
    [
        ({"attn_local": None, "attn_topk": None}, Dense()),
        ({"task": "aime24", "pass@1": 50.0, "total_example": 4}, Dense()),
        (BLOCKS, LiteSysBlockTopK(pages=64, page_size=16)),
        ({**BLOCKS, "attn_local": 128}, LiteSysBlockTopK(pages=64, page_size=16, local=128)),
        ({"attn_local": 0, "attn_topk": 1024, "attn_block_topk": None}, TokenTopK(1024)),
        ({"attn_local": 128, "attn_topk": 128}, TokenTopK(256)),
        ({"attn_local": 1024}, SlidingWindow(1028)),
        (
            {**BLOCKS, "attn_stride": 8, "attn_local": 4},
            LiteSysStridedBlocks(pages=64, page_size=16, stride=8, local=4),
        ),
        ({"attn_local": 16, "attn_random_select": 128}, LiteSysRandomTokens(samples=128, local=16)),
        ({"attn_local": 0, "attn_random_nsample": 128}, LiteSysRandomTokens(samples=128, weights="importance")),
        ({**BLOCKS, "attn_layer_skip": [1, 0]}, LiteSysBlockTopK(pages=64, page_size=16, dense_layers=(0, 1))),
        ({"attn_local": 0, "attn_topk": 8, "attn_layer_skip": []}, TokenTopK(8, dense_layers=())),
    ],
)
def test_the_first_line_says_the_attention(tmp_path, metadata, policy):
    assert read_samples(write_lines(tmp_path / "a.jsonl", metadata, sample("?", 0)), model="8B").attention == policy


def test_the_papers_files_cost_what_its_code_says(tmp_path):
    """Golden value of block top-k, 8B, 64 blocks of 16, 256 tokens in and 16384 out."""
    path = write_lines(tmp_path / "aime24_qwen3-8b.jsonl", BLOCKS, sample("?", 100))
    run = read_samples(path)
    assert run.config is not None
    cost = generation_cost(
        run.config,
        prompt_tokens=256,
        output_tokens=16384,
        trials=32,
        attention=run.attention,
        convention="upstream",
        intensity=562.5,
    )
    np.testing.assert_allclose(cost.total, 63871.459, rtol=1e-7)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BLOCKS, sample("?", 50)], "line 2: score is 0 or 100, not 50"),
        ([BLOCKS, sample("?", 0), {"query": "?", "score": 0, "prediction": "x"}], "line 3: no 'choice'"),
        ([BLOCKS, sample("?", 0) | {"prediction": ["x", "y"]}], "line 2: prediction and choices are a text"),
        ([BLOCKS, sample("?", 0), sample("?", 0) | {"choices": ["4"]}], "line 3: the same question has another"),
        ([{**BLOCKS, "attn_nsample": 4}, sample("?", 0)], "attn_nsample of its first line has no counterpart"),
        ([{"attn_local": 0, "attn_stride": 4}, sample("?", 0)], "attn_stride without attn_block_topk"),
        ([{**BLOCKS, "attn_stride": 0}, sample("?", 0)], "its first line says .*stride must be at least 1, got 0"),
        (
            [{**BLOCKS, "attn_topk": 8}, sample("?", 0)],
            "gives attn_topk and attn_block_topk, of which",
        ),
        ([{**BLOCKS, "attn_layer_skip": [-1]}, sample("?", 0)], "attn_layer_skip cannot be .*a list of layers"),
        ([{**BLOCKS, "attn_block_topk": "64"}, sample("?", 0)], "attn_block_topk cannot be '64'; it is a whole number"),
        ([sample("?", 0)], "does not say its attention"),
        ([{"task": "aime24"}, [1]], "line 2: holds list, expected a JSON object"),
    ],
)
def test_what_the_papers_files_cannot_hold_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(SamplesError, match=f"a.jsonl.*{message}"):
        read_samples(write_lines(tmp_path / "a.jsonl", *lines), model="8B")


def test_what_is_given_must_not_contradict_a_file(tmp_path):
    path = write_lines(tmp_path / "aime24_qwen3-8b.jsonl", BLOCKS, sample("?", 0))
    with pytest.raises(SamplesError, match="its attention is litesys_block_topk"):
        read_samples(path, attention="dense")
    with pytest.raises(SamplesError, match=r"its model is Qwen/Qwen3-8B, not Qwen/Qwen3-4B as given"):
        read_samples(path, model="Qwen/Qwen3-4B")
    bare = write_lines(tmp_path / "local0_topk8.jsonl", {"task": "t"}, sample("?", 0))
    with pytest.raises(SamplesError, match="does not say its attention"):  # its name says that it is not dense
        read_samples(bare, model="8B")
    assert read_samples(bare, model="8B", attention="token_topk:budget=8").attention == TokenTopK(8)
    with pytest.raises(SamplesError, match="says which model"):
        read_samples(bare, attention="token_topk:budget=8")


ROWS = [
    {"problem": "a", "sample": 1, "tokens": 10, "correct": 1},
    {"problem": "a", "sample": 2, "tokens": "", "correct": 0},
    {"problem": "b", "sample": 1, "tokens": 30, "correct": ""},
]


def write_table(path, rows):
    if path.suffix == ".jsonl":
        return write_lines(path, *rows)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).replace("", None).to_parquet(path)
        return path
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_tables(tmp_path, ending):
    run = read_samples(write_table(tmp_path / f"t{ending}", ROWS), model="gpt")
    assert (run.model, run.attention, run.config) == ("gpt", Dense(), None)
    assert (run.problem, run.sample) == (["a", "a", "b"], [1, 2, 1])
    assert run.output_tokens == [10, None, 30]
    assert run.correct == [True, False, None]
    assert run.prompt_tokens == [None] * 3
    full = [row | {"model": "8B", "attention": "block_topk:budget=64", "prompt_tokens": 5} for row in ROWS]
    run = read_samples(write_table(tmp_path / f"full{ending}", full))
    assert (run.model, str(run.attention)) == ("Qwen/Qwen3-8B", "block_topk:budget=64,page_size=16")
    assert (run.config, run.prompt_tokens) == (ModelConfig.named("8B"), [5] * 3)


def test_a_table_of_several_models_and_runs(tmp_path):
    rows = [
        {"problem_id": "a", "epoch": e, "output_tokens": e, "correct": 1, "model": model, "run": run}
        for model, run in (("x", "1"), ("x", "2"), ("8B", "3"))
        for e in (1, 2)
    ]
    path = write_table(tmp_path / "t.csv", rows)
    runs = read_all([path])
    assert [run.model for run in runs] == ["x (1)", "x (2)", "Qwen/Qwen3-8B"]
    assert [run.config is None for run in runs] == [True, True, False]
    with pytest.raises(SamplesError, match="holds 3 runs"):
        read_samples(path)
    small = ModelConfig.named("0.6B")
    with pytest.raises(SamplesError, match=r"a config is for the one model .* it is x \(1\), x \(2\)"):
        read_all([path], config=small)
    one = write_table(tmp_path / "one.csv", rows[:2])
    assert read_samples(one, config=small).config == small


SPARSE_ROWS = [{**row, "attention": "block_topk:budget=256,page_size=16", "correct": 0} for row in ROWS]
DENSE_ROWS = [{**row, "correct": 1} for row in ROWS]


@pytest.mark.parametrize("first", ["dense", "sparse"])
def test_rows_without_attention_are_a_configuration_of_their_own(tmp_path, first):
    """Two files made one: neither takes over the other's rows, whichever comes first."""
    rows = DENSE_ROWS + SPARSE_ROWS if first == "dense" else SPARSE_ROWS + DENSE_ROWS
    path = write_table(tmp_path / "t.jsonl", rows)
    with pytest.warns(UserWarning, match="3 of 6 rows name no attention .* taken for dense attention"):
        runs = read_all([path], model="8B")
    assert {str(run.attention): run.correct for run in runs} == {
        "dense": [True] * 3,
        "block_topk:budget=256,page_size=16": [False] * 3,
    }
    with pytest.raises(SamplesError, match=r"its attention is block_topk:.*, not token_topk"):
        read_all([path], model="8B", attention="token_topk:budget=8")


@pytest.mark.parametrize("where", [0, 1, 2])
def test_columns_are_those_of_all_rows(tmp_path, where):
    full = [row | {"model": "8B", "prompt_tokens": 5} for row in ROWS]

    def without(column):
        rows = [dict(row) for row in full]
        del rows[where][column]
        return write_table(tmp_path / f"{column}.jsonl", rows)

    with pytest.raises(SamplesError, match=rf"line {where + 1}: names no model, where other rows do \(1 of 3 rows"):
        read_samples(without("model"))
    assert read_samples(without("correct")).correct[where] is None
    assert read_samples(without("prompt_tokens")).prompt_tokens[where] is None
    with pytest.raises(SamplesError, match=rf"line {where + 1}: no problem"):
        read_samples(without("problem"))


def test_rows_of_other_settings_are_kept_apart(tmp_path):
    rows = [{**row, "temperature": t, "max_tokens": 99, "sample": i} for i, row in enumerate(ROWS) for t in (0.6, 2)]
    runs = read_all([write_table(tmp_path / "t.csv", rows)], model="8B")
    assert [run.settings for run in runs] == [{"temperature": t, "max_tokens": 99} for t in (0.6, 2)]
    with pytest.raises(SamplesError, match="differ in temperature cannot be pooled"):
        pooled(runs)


@pytest.mark.parametrize("ending", [".CSV", ".JsonL", ".Parquet"])
def test_endings_and_headers_in_any_case(tmp_path, ending):
    rows = [
        {name.upper() if ending != ".Parquet" else f" {name}": value for name, value in row.items()} for row in ROWS
    ]
    plain = write_table(tmp_path / f"t{ending.lower()}", rows)
    plain.rename(tmp_path / f"t{ending}")
    assert read_samples(tmp_path / f"t{ending}", model="m").correct == [True, False, None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "problem,sample,tokens,correct,correct\na,1,2,1,0\n"),
        ("t.csv", "problem,sample,tokens,correct,Correct\na,1,2,1,0\n"),
        ("t.jsonl", '{"problem": "a", "sample": 1, "tokens": 2, "correct": 1, "CORRECT": 0}\n'),
        ("t.jsonl", '{"problem": "a", "sample": 1, "tokens": 2, "correct": 1, "correct": 0}\n'),
    ],
)
def test_a_column_that_is_there_twice_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SamplesError, match="twice"):
        read_samples(tmp_path / name, model="m")
    (tmp_path / "both.csv").write_text("problem,sample,tokens,output_tokens,correct\na,1,2,3,1\n")
    with pytest.raises(SamplesError, match="line 2: has both tokens and output_tokens"):
        read_samples(tmp_path / "both.csv", model="m")


def test_ids_of_samples_are_what_they_are(tmp_path):
    ids = ["²", "--0", "01", "1", "-3", "9" * 5000, "٣"]
    rows = [{"problem": "a", "sample": name, "tokens": 1, "correct": 1} for name in ids]
    assert read_samples(write_table(tmp_path / "t.csv", rows), model="m").sample == ids
    rows = [{"problem": "a", "sample": name, "tokens": 1, "correct": 1} for name in ("1", "-3", 2)]
    assert read_samples(write_table(tmp_path / "u.csv", rows), model="m").sample == [1, -3, 2]


def test_records_of_a_run_folder_as_a_table(tmp_path):
    folder = write_run(tmp_path / "run")
    whole = read_samples(folder)
    inside = read_samples(folder / "samples.jsonl")
    assert (inside.model, inside.output_tokens, inside.settings) == (whole.model, [2], whole.settings)
    moved = tmp_path / "samples.jsonl"
    moved.write_bytes((folder / "samples.jsonl").read_bytes())
    with pytest.raises(SamplesError, match=r"only its run\.json says; name the folder .*--attention dense"):
        read_samples(moved, model="8B")
    run = read_samples(moved, model="8B", attention="dense")
    assert (run.sample, run.output_tokens, run.prompt_tokens) == ([("0", 0)], [2], [3])
    assert (run.answers, run.ended) == (["1"], ["stop"])


def test_results_beside_samples_are_passed_over(tmp_path):
    write_run(tmp_path / "run")
    table = cost_frontier([read_samples(tmp_path / "run")])
    table.to_csv(tmp_path / "frontier.csv", index=False)
    with pytest.warns(UserWarning, match=r"frontier\.csv: a table of results, not of samples; passed over"):
        assert [run.model for run in read_all([tmp_path])] == ["m"]
    with pytest.raises(SamplesError, match=r"frontier\.csv: no column problem"):
        read_all([tmp_path / "frontier.csv"])


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": "many"}, "tokens cannot be 'many'"),
        ({"tokens": -1}, "tokens cannot be"),
        ({"tokens": 1.5}, "tokens cannot be"),
        ({"tokens": 10**30}, "tokens cannot be"),
        ({"tokens": "1e400"}, "tokens cannot be"),
        ({"tokens": "x" * 5000}, "tokens cannot be 'x{39}…x+'"),
        ({"correct": "perhaps"}, "correct cannot be 'perhaps'"),
        ({"problem": ""}, "no problem"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, ending, change, message):
    path = write_table(tmp_path / f"t{ending}", [ROWS[0], ROWS[1] | change, ROWS[2]])
    line = 3 if ending == ".csv" else 2
    with pytest.raises(SamplesError, match=rf"t\{ending}, line {line}: {message}"):
        read_samples(path, model="m")


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(SamplesError, match="not a run folder, nor a file of samples"):
        read_samples(tmp_path / "none.csv")
    with pytest.raises(
        SamplesError, match="no column correct; a table of samples has problem, sample, tokens, correct"
    ):
        read_samples(write_table(tmp_path / "t.csv", [{"problem": 1, "sample": 1, "tokens": 1}]), model="m")
    with pytest.raises(SamplesError, match="says no model"):
        read_samples(write_table(tmp_path / "t.csv", ROWS))
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(ROWS[0]) + '\n{"problem": "a", "sam')
    with pytest.raises(SamplesError, match=r"torn\.jsonl, line 2: not valid JSON"):
        read_samples(torn, model="m")
    (tmp_path / "short.csv").write_text("problem,sample,tokens,correct\na,1,2\n")
    with pytest.raises(SamplesError, match="line 2: has 3 fields, the first line names 4"):
        read_samples(tmp_path / "short.csv", model="m")
    for name in ("x.parquet", "x.txt", "empty.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(SamplesError, match=name):
            read_samples(tmp_path / name, model="m")


def write_run(path):
    run = {"model": "m", "policy": "dense", "config": dataclasses.asdict(ModelConfig.named("0.6B")), "n": 1}
    record = {"problem": "a", "sample": 0, "seed": 0, "prompt_tokens": 3, "output_tokens": [1, 2], "text": "x"}
    record |= {"finish_reason": "stop", "correct": True, "answer": "1", "grader": "ok", "seconds": 1.0}
    with RunWriter(path, run, [{"id": "a", "question": "?", "answer": "1", "prompt": "?"}]) as writer:
        writer.append(record)
    return path


def test_run_folders_and_directories(tmp_path):
    run = read_samples(write_run(tmp_path / "run"))
    assert (run.model, run.output_tokens, run.config) == ("m", [2], ModelConfig.named("0.6B"))
    with pytest.raises(SamplesError, match="its model is m, not n as given"):
        read_samples(tmp_path / "run", model="n")
    write_table(tmp_path / "t.csv", [row | {"model": "m2"} for row in ROWS])
    assert [run.model for run in read_all([tmp_path])] == ["m", "m2"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SamplesError, match=r"nothing: not a run folder \(it holds no run\.json\), nor"):
        read_all([tmp_path / "nothing"])
