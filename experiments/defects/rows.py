"""One line of the table of defects, and the models and grids that the paper measures with."""

from __future__ import annotations

import dataclasses

from kinetics_jax.config import ModelConfig

SIZES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
MODELS = {size: ModelConfig.named(size) for size in SIZES}
B200_FP8 = 562.5  # FLOP/byte, the paper's
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
BLOCKS = ((128, 1), (64, 4), (32, 16), (16, 64), (8, 256))  # page size and k of the published budgets 128 … 2048
TOKENS_OF_PROMPT = 150  # an AIME prompt has 100 to 250


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantity of `case` as the published code or paper has it, and its right value."""

    defect: int
    case: str
    quantity: str
    published: float
    right: float


DEFECTS = {  # what is wrong: what is right
    1: ("token top-k adds ½·max(0, B − L_in)²", "subtracted, as long as the output fills the budget"),
    2: ("what is subtracted exceeds the rest when L_out < B − L_in", "the exact sum, equal to dense there"),
    3: ("blocks by one floor of a sum of lengths", "every block that a step reads, summed"),
    4: ("I = 562.5: fp8 arithmetic over bf16 bytes", "I of the chip and type at hand"),
    5: ("tied embeddings counted twice", "counted once"),
    6: ("dense layer, sinks, leftover block, prefill and weights are free", "charged"),
    7: ("a shared prompt is read for E[L] steps", "for E[max L] steps: until the last trial ends"),
    8: ("dense attention and search share the prompt, sparse attention does not", "one rule for all"),
    9: ("output tokens recounted from text, chat template and all", "the ids that were generated are counted"),
    10: ("`query_id` counts within a file, and the best of an id mixes questions", "samples grouped by question"),
    11: (
        "envelope: labels a factor 2.33 in cost too far right, ties to the first name, smoothing",
        "aligned, ties to the cheapest, unsmoothed",
    ),
    12: ("the best configuration is chosen and scored on the same samples", "scored on other samples"),
    13: ("30B-A3B is not in the scripts", "costed by its active parameters and its own KV"),
    14: ("LiteSys, see below", "correct, and tested"),
    15: ("the throughput demo is one layer, random pages, stale means", "the whole model, end to end"),
}

BEHAVIOURS = {  # defects of behaviour rather than cost: what is wrong, and the tests that hold the right behaviour
    "9: tokens are recounted from text": ("tests/analysis/test_frontier.py::test_a_run_folder_becomes_run_data",),
    "10: questions are mixed": (
        "tests/analysis/test_frontier.py::test_problems_of_one_id_must_be_one",
        "tests/analysis/test_frontier.py::test_runs_of_several_tasks_are_kept_apart",
    ),
    "11: ties and labels of an envelope": ("tests/analysis/test_frontier.py::test_pareto_is_its_definition",),
    "14: lengths are indexed by batch row, not by slot": (
        "tests/engine/test_engine.py::test_samples_do_not_depend_on_order_refill_or_neighbours",
    ),
    "14: the last token is dropped": ("tests/engine/test_engine.py::test_cached_greedy_equals_the_argmax_chain",),
    "14: the first token is not checked for the end": (
        "tests/engine/test_engine.py::test_an_end_token_drawn_first_ends_the_sample",
    ),
    "14: no guard at the model's length": ("tests/engine/test_engine.py::test_what_cannot_fit_is_refused",),
    "14: no seed": ("tests/engine/test_engine.py::test_seed_and_problem_change_the_draws",),
    "14: top-k may drop the current token": (
        "tests/kernels/test_reference.py::test_selection_order_cover_and_budget",
        "tests/attention/test_sparse_attention.py::test_decoding_is_the_policy_and_nothing_else",
    ),
    "14: random blocks repeat": (
        "tests/attention/test_sparse_attention.py::test_random_blocks_are_uniform_and_distinct",
    ),
    "14: Quest's flags are read and not used": (
        "tests/kernels/test_reference.py::test_min_max_bounds_every_logit_of_the_page",
        "tests/kernels/test_reference.py::test_kinds_of_summaries_choose_different_pages",
    ),
    "15: page means are never updated": (
        "tests/kernels/test_reference.py::test_append_writes_one_token_and_closes_full_pages",
        "tests/engine/test_engine.py::test_prefill_and_decode_agree_to_the_bit_on_summaries",
    ),
}
