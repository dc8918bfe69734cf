"""Architectures: parameters as transformers and the publishers count them, and prices equal to those of a run model."""

import dataclasses
import json

import numpy as np
import pytest

from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.planner import list_options
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import SamplesError, pooled
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.cost import cost
from kinetics_jax.config import ModelConfig
from kinetics_jax.config_fields import ConfigError
from kinetics_jax.costs.architectures.memory import sequence_bytes
from kinetics_jax.costs.architectures.published import PUBLISHED, architecture_named
from kinetics_jax.costs.architectures.readers import READERS, architecture_of, read_architecture, read_priced
from kinetics_jax.costs.architectures.traffic import architecture_traffic
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import hardware
from kinetics_jax.costs.memory import fits, total_parameters
from kinetics_jax.costs.step_time import step_amounts
from kinetics_jax.costs.traffic import traffic

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
LATENT = {
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
INDEXER = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
BLOCKS = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_count": 3,
    "hc_lowrank": 5,
    "ple_layer_ids": [2],
    "ngram_vocab_size_base": 50,
    "ple_embed_dim": 32,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
}


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


TINY = {
    "gpt_oss": COMMON | {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8},
    "gemma2": COMMON | {"sliding_window": 8},
    "gemma3_text": COMMON | {"sliding_window": 8, "num_hidden_layers": 7},
    "deepseek_v2": without(COMMON | LATENT, "head_dim"),
    "deepseek_v3": without(COMMON | LATENT, "head_dim", "q_lora_rank") | {"q_lora_rank": None},
    "deepseek_v32": without(COMMON | LATENT | INDEXER, "head_dim", "num_key_value_heads"),
    "qwen3_next": COMMON | EXPERTS | LINEAR,
    "qwen3_5_text": COMMON | LINEAR,
    "qwen3_5_moe_text": COMMON | EXPERTS | LINEAR,
    "qwen4_exp_text": without(COMMON, "intermediate_size") | EXPERTS | LINEAR | BLOCKS,
}


@pytest.mark.slow  # transformers and torch are imported
@pytest.mark.parametrize("kind", TINY)
def test_parameters_are_those_of_transformers(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    try:
        config = transformers.AutoConfig.for_model(kind, **TINY[kind])
    except ValueError as error:
        pytest.skip(f"this transformers does not know {kind}: {error}")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    held = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert read_architecture({"model_type": kind, **config.to_dict()}).total_parameters == sum(held.values())
    assert read_architecture({"model_type": kind, **TINY[kind]}).total_parameters == sum(held.values())


def test_every_kind_has_a_tiny_one():
    alike = {"gemma3": "gemma3_text", "kimi_k2": "deepseek_v3"}
    alike |= {kind: f"{kind}_text" for kind in ("qwen3_5", "qwen3_5_moe", "qwen4_exp")}
    assert {alike.get(kind, kind) for kind in READERS} == set(TINY)


# Billions of parameters, all and per token, as the publishers or their model cards state them.
STATED = {
    "openai/gpt-oss-20b": (20.91, 3.61),
    "openai/gpt-oss-120b": (116.83, 5.13),
    "google/gemma-3-12b-it": (11.77, 11.77),
    "google/gemma-3-27b-it": (27.01, 27.01),
    "deepseek-ai/DeepSeek-V2-Lite": (15.7, 2.4),
    "deepseek-ai/DeepSeek-V3": (671.0, 37.0),
    "Qwen/Qwen3-Next-80B-A3B-Thinking": (79.7, 3.6),
    "Qwen/Qwen3.8-Flash-Next": (176.94, 6.7),
}


@pytest.mark.parametrize("name", STATED)
def test_sizes_are_those_that_the_publishers_state(name):
    total, active = STATED[name]
    architecture = architecture_named(name)
    assert architecture.total_parameters / 1e9 == pytest.approx(total, abs=0.06)
    assert architecture.matmul_parameters / 1e9 == pytest.approx(active, rel=0.03)  # look-ups left out


POLICIES = ["dense", "block_topk:budget=64,page_size=16", "token_topk:budget=32", "sliding_window:budget=40"]


@pytest.mark.parametrize("size", ["0.6B", "8B", "30B-A3B", "Qwen2.5-7B-Instruct"])
@pytest.mark.parametrize("spelling", POLICIES)
@pytest.mark.parametrize("shared", [False, True])
def test_a_run_model_costs_the_same_both_ways(size, spelling, shared):
    config, policy = ModelConfig.named(size), parse_policy(spelling)
    architecture = architecture_of(config)
    assert architecture.matmul_parameters == config.matmul_parameters
    assert architecture.active_parameters == config.active_parameters
    assert architecture.total_parameters == total_parameters(config)
    prompt, output = np.array([0.0, 1, 200, 1000]), np.array([1.0, 7, 300, 5000])
    expected = traffic(config, prompt, output, policy, 2, 1, np.array(8.0), shared)
    found = architecture_traffic(architecture, prompt, output, policy, 2, 1, np.array(8.0), shared)
    for name, (own, once) in expected.items():
        others = found.get(name, (0.0, None))
        for amount, other in ((own, others[0]), (once, others[1])):
            np.testing.assert_allclose(0 if other is None else other, 0 if amount is None else amount, rtol=1e-12)
    for chips, tokens in ((1, 0), (4, 300)):
        given = {"tokens": 1000, "attention": policy, "chips": chips, "shared_tokens": tokens}
        mine, other = (dataclasses.asdict(fits(each, "h200", **given)) for each in (architecture, config))
        assert mine == pytest.approx(other, rel=1e-9)


def test_hybrids_grow_with_their_full_layers_alone():
    hybrid, policy = architecture_named("Qwen3-Next-80B-A3B-Thinking"), parse_policy("dense")
    more = sequence_bytes(hybrid, 4096, policy, kv_bytes=2) - sequence_bytes(hybrid, 2048, policy, kv_bytes=2)
    assert more == 2048 * 12 * 2 * 2 * 2 * 256  # 12 of 48 layers, 2 KV heads of 256
    state = 36 * (4 * 32 * 128 * 128 + 2 * 3 * (2 * 16 + 32) * 128)
    assert sequence_bytes(hybrid, 16, policy, kv_bytes=2) - 16 * 12 * 2 * 2 * 2 * 256 == state


def test_selection_by_design_can_be_switched_off():
    own = architecture_named("DeepSeek-V3.2")
    dense = own.without_selection()
    assert own.selects_by_design
    assert not dense.selects_by_design
    policy = parse_policy("dense")

    def reads(architecture):
        parts = architecture_traffic(architecture, np.float64(65536), np.float64(2), policy, 2, 2, None, False)
        return sum(own for name, (own, _) in parts.items() if name.endswith(("kv_reads", "search_reads")))

    assert reads(dense) == 2 * 61 * 576 * 65537
    assert reads(own) == 2 * 61 * (576 * 2048 + 128 * 65537)


def test_images_are_left_out():
    nested = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **TINY["gemma3_text"]}}
    assert read_architecture(nested) == read_architecture({"model_type": "gemma3_text", **TINY["gemma3_text"]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not one that can be priced"),
        ({}, "model_type None is not one"),
        ({"model_type": "gpt_oss", **without(TINY["gpt_oss"], "hidden_size")}, "missing hidden_size"),
        ({"model_type": "gpt_oss", **TINY["gpt_oss"], "layer_types": ["full_attention"]}, "each of 4 layers"),
        ({"model_type": "gpt_oss", **TINY["gpt_oss"], "layer_types": ["mamba"] * 4}, "layer_types holds 'mamba'"),
        ({"model_type": "gemma2", **TINY["gemma2"], "sliding_window": -1}, "sliding_window must be at least 1"),
        ({"model_type": "qwen4_exp", **TINY["qwen4_exp_text"], "indexer_budget": 7}, "must be a multiple of its block"),
        ({"model_type": "qwen4_exp", **TINY["qwen4_exp_text"], "ple_layer_ids": 3}, "must be a list of layers"),
        ({"model_type": "qwen3_next", **TINY["qwen3_next"], "mlp_only_layers": "x"}, "mlp_only_layers must be a list"),
        ({"model_type": "gpt_oss", **TINY["gpt_oss"], "num_key_value_heads": 3}, r"\(4\) must be a multiple of"),
        (
            {"model_type": "gpt_oss", **TINY["gpt_oss"], "num_experts_per_tok": 7},
            r"must be at most num_local_experts \(6\)",
        ),
        (
            {"model_type": "gpt_oss", **TINY["gpt_oss"], "experts_per_token": 4},
            "contradicts itself: num_experts_per_tok = 2",
        ),
        ({"model_type": "gpt_oss", **TINY["gpt_oss"], "num_hidden_layers": 10**8}, "num_hidden_layers must be at most"),
    ],
)
def test_what_cannot_be_priced_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        read_architecture(fields)


def test_what_published_gemma_files_leave_out():
    """The 4B's text_config holds no heads and no vocabulary: they are the defaults of its class."""
    shape = {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10_240, "sliding_window": 1024}
    found = read_architecture({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **shape}})
    assert found.total_parameters / 1e9 == pytest.approx(3.88, abs=0.005)  # of the 4.3 with the vision tower
    with pytest.raises(ConfigError, match="text_config: missing hidden_size"):
        read_architecture({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})


@pytest.mark.parametrize("spelling", ["block_topk:budget=1024,page_size=16", "sliding_window:budget=64"])
def test_a_policy_that_changes_nothing_is_refused(spelling):
    with pytest.raises(CostError, match="changes none of its layers"):
        generation_cost(
            architecture_named("DeepSeek-V3.2"),
            prompt_tokens=1,
            output_tokens=9,
            attention=parse_policy(spelling),
            hardware="h200",
        )


def test_names():
    assert architecture_named("gpt-oss-20b").name == "openai/gpt-oss-20b"
    assert all(source for _, source in PUBLISHED.values())
    with pytest.raises(ConfigError, match="did you mean openai/gpt-oss-20b"):
        architecture_named("gpt-oss-20")


def test_the_cost_command_prices_them(capsys, tmp_path):
    def priced(model):
        policy = "block_topk:budget=1024,page_size=16"
        cost(model=model, output=(16_384,), batch="fit", hardware="h100", attention=policy, as_json=True)
        return json.loads(capsys.readouterr().out)

    named = priced("gpt-oss-20b")
    assert named["model"] == "openai/gpt-oss-20b"
    assert {"window_kv_reads", "chosen_kv_reads", "weight_reads"} <= set(named["parts"])
    assert named["total"] == pytest.approx(sum(named["parts"].values()))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["openai/gpt-oss-20b"][0]))
    assert priced(str(tmp_path))["parts"] == named["parts"]


def test_several_chips_share_by_heads():
    """Four chips: KV heads of 8 split in four, the latent cache of DeepSeek is on every chip."""
    for name, copies in (("gpt-oss-120b", 1), ("DeepSeek-V3", 4)):
        given = {"prompt_tokens": 0, "output_tokens": 4096, "hardware": "h200"}
        one, four = (generation_cost(architecture_named(name), chips=chips, **given) for chips in (1, 4))
        assert four.parts["dense_kv_reads"] == pytest.approx(copies * one.parts["dense_kv_reads"])
        assert four.parts["linear"] == pytest.approx(one.parts["linear"])


@pytest.mark.parametrize("convention", ["paper", "upstream"])
def test_published_conventions_know_full_attention_alone(convention):
    with pytest.raises(CostError, match="price openai/gpt-oss-20b by traffic"):
        generation_cost(
            architecture_named("gpt-oss-20b"), prompt_tokens=1, output_tokens=9, convention=convention, hardware="h100"
        )


TABLE = "problem,sample,prompt_tokens,tokens,correct,model\n" + "".join(
    f"p{problem},{sample},200,{1000 * (1 + problem + sample)},{(problem + sample) % 2},{{model}}\n"
    for problem in range(3)
    for sample in range(2)
)


def test_frontiers_and_plans_price_them_by_name_and_by_config(tmp_path):
    table, config = tmp_path / "samples.csv", tmp_path / "config.json"
    table.write_text(TABLE.format(model="gpt-oss-20b"))
    named = pooled(read_all([table]))
    config.write_text(json.dumps(PUBLISHED["openai/gpt-oss-20b"][0]))
    table.write_text(TABLE.format(model="mine"))
    given = pooled(read_all([table], config={"mine": read_priced(config)}))
    tables = [cost_frontier(pools, hardware="h200") for pools in (named, given)]
    assert set(tables[0]["model"]) == {"openai/gpt-oss-20b"}
    assert tables[0]["cost"].tolist() == tables[1]["cost"].tolist()
    assert (tables[0]["cost"] > tables[0]["cost_without_weights"]).all()
    seconds = list_options(named, hardware("h200")).table["seconds"]
    assert np.isfinite(seconds).all()


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "Qwen/Qwen3-8B"])
def test_a_config_must_agree_with_the_published_model_of_its_name(tmp_path, name):
    table = tmp_path / "samples.csv"
    table.write_text(TABLE.format(model=name))
    with pytest.raises(SamplesError, match="as the published model of that name has"):
        pooled(read_all([table], config={name: architecture_named("gemma-3-12b-it")}))


def test_a_step_is_the_difference_of_two_costs():
    """`step_time` and `generation_cost` count one decode step alike, for caches of any width."""
    architecture, policy = architecture_named("Qwen3.8-Flash-Next"), parse_policy("dense")
    step = step_amounts(architecture, policy, contexts=np.array([[5000.0, 9000.0]]), kv_bytes=1, weight_bytes=1)
    for part in ("chosen_kv_reads", "search_reads", "state_reads"):
        whole = [
            architecture_traffic(architecture, np.array(n - 1.0), np.array(2.0), policy, 1, 1, None, False)[part][0]
            for n in (5000, 9000)
        ]
        assert step[part][0] == pytest.approx(sum(whole))
    assert step["weight_reads"][0] == pytest.approx(architecture.touched_parameters(2))
