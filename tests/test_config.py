"""config.json in its spellings, and the published sizes."""

import json

import pytest
from paths import SHARED
from tiny import LLAMA, LLAMA3, MOE, PARITY_CASES, QWEN2, tiny_config

from kinetics_jax.config import PUBLISHED, PUBLISHED_OTHERS, ConfigError, ModelConfig

REAL = SHARED / "configs"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_match_their_config_json(name):
    path = REAL / f"Qwen3-{name}.json"
    if not path.exists():
        pytest.skip("the real config.json files are not here")
    real, ours = ModelConfig.from_hf(path), ModelConfig.named(f"Qwen/Qwen3-{name}")
    for field in ModelConfig.__dataclass_fields__:
        if field not in ("name", "eos_token_ids"):
            assert getattr(real, field) == getattr(ours, field), field
    assert set(real.eos_token_ids) <= set(ours.eos_token_ids)


@pytest.mark.parametrize(
    ("name", "billions", "kv_bytes"),
    [("0.6B", 0.596, 114_688), ("1.7B", 1.721, 114_688), ("8B", 8.191, 147_456), ("14B", 14.768, 163_840),
     ("32B", 32.762, 262_144), ("30B-A3B", 3.353, 98_304)],
)  # fmt: skip
def test_parameter_counts_and_kv_bytes(name, billions, kv_bytes):
    config = ModelConfig.named(name)
    assert config.active_parameters / 1e9 == pytest.approx(billions, abs=6e-4)
    assert 2 * config.kv_elements_per_token == kv_bytes


def test_matmul_parameters():
    billions = [ModelConfig.named(name).matmul_parameters / 1e9 for name in ("8B", "14B", "32B")]
    assert billions == pytest.approx([7.568, 13.990, 31.984], abs=6e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 12_288), ("Qwen2.5-1.5B-Instruct", 1_543_714_304, 28_672),
     ("Qwen2.5-3B-Instruct", 3_085_938_688, 36_864), ("Qwen2.5-7B-Instruct", 7_615_616_512, 57_344),
     ("DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000, 28_672), ("DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512, 57_344),
     ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14_770_033_664, 196_608),
     ("DeepSeek-R1-Distill-Qwen-32B", 32_763_876_352, 262_144), ("Qwen2.5-72B-Instruct", 72_706_203_648, 327_680)],
)  # fmt: skip
def test_parameter_counts_of_other_families(name, parameters, kv_bytes):
    """As their model cards count them, biases included."""
    config = ModelConfig.named(name)
    assert config.name.endswith(name)
    assert config.active_parameters == parameters
    assert 2 * config.kv_elements_per_token == kv_bytes


def test_both_spellings_of_renamed_fields():
    old = ModelConfig.from_hf(tiny_config(rope_theta=5e6, torch_dtype="bfloat16"))
    new = ModelConfig.from_hf(
        tiny_config(
            rope_theta=None,
            rope_parameters={"rope_theta": 5e6, "rope_type": "default"},
            torch_dtype=None,
            dtype="bfloat16",
            layer_types=["full_attention", "full_attention"],
        )
    )
    assert old == new
    assert old.rope_theta == 5e6


def test_harmless_unknown_fields_are_ignored():
    fields = {"use_cache": True, "transformers_version": "9", "sliding_window": 4096, "initializer_range": 0.02}
    assert ModelConfig.from_hf(tiny_config(**fields)) == ModelConfig.from_hf(tiny_config())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters.rope_type = 'yarn'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"num_hidden_layers": None}, "missing num_hidden_layers"),
        ({"rope_theta": None}, "missing rope_theta"),
        ({"num_key_value_heads": 3}, "must be a multiple"),
        ({"head_dim": 7}, "must be even"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number"),
        ({"vocab_size": 131.9}, "vocab_size must be a whole number"),
        ({"head_dim": 0}, "head_dim must be even"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"rope_theta": -5}, "rope_theta must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"layer_types": 5}, "layer_types must be a list"),
        ({"eos_token_id": ["a"]}, "eos_token_id must be token ids"),
        ({"model_type": "qwen3_moe"}, "missing num_experts, num_experts_per_tok"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type = 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "missing rope_scaling.low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": -1}}, "rope_scaling.factor must be a positive"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 9}}, "must be below high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "beta": 1}}, "rope_scaling.beta = 1"),
        ({"rope_scaling": [2]}, "rope_scaling must be an object"),
        ({"dual_chunk_attention_config": {"chunk_size": 4}}, "dual_chunk_attention_config"),
        ({**QWEN2, "use_sliding_window": True}, "use_sliding_window = True"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({**LLAMA, "attention_bias": True}, "attention_bias = True"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias = True"),
        ({**MOE, "num_experts_per_tok": 9}, r"num_experts_per_tok must be 1 to num_experts \(8\), got 9"),
        ({**MOE, "decoder_sparse_step": 0}, "decoder_sparse_step must be at least 1"),
        ({**MOE, "norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        ({**MOE, "mlp_only_layers": ["all"]}, "mlp_only_layers must be a list of layers"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, says):
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_hf(tiny_config(**change))


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="JSON object"):
        ModelConfig.from_hf(tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean Qwen/Qwen3-1\.7B"):
        ModelConfig.named("Qwen/Qwen3-1.8B")


@pytest.mark.parametrize("name", [*PUBLISHED, *PUBLISHED_OTHERS])
def test_what_is_written_is_read_back(name):
    config = ModelConfig.named(name)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())), name=config.name) == config


@pytest.mark.parametrize("case", PARITY_CASES)
def test_every_kind_is_written_as_it_is_read(case):
    config = ModelConfig.from_hf(tiny_config(**PARITY_CASES[case]))
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_fields_that_older_and_newer_files_lack():
    """Llama 2 names neither theta nor KV heads; newer transformers call the experts local."""
    old = tiny_config(**LLAMA, rope_theta=None, num_key_value_heads=None, max_position_embeddings=None)
    config = ModelConfig.from_hf(old)
    assert (config.rope_theta, config.num_kv_heads, config.head_dim) == (10_000.0, 4, 8)
    assert config.max_position_embeddings == 2048
    moe = ModelConfig.from_hf(tiny_config(**MOE))
    assert ModelConfig.from_hf(tiny_config(**MOE | {"num_experts": None}, num_local_experts=8)) == moe


def test_one_end_token_or_none_is_written_as_it_is_read():
    for eos in (7, None):
        config = ModelConfig.from_hf(tiny_config(eos_token_id=eos, tie_word_embeddings=True))
        assert config.to_hf()["eos_token_id"] == eos
        assert ModelConfig.from_hf(config.to_hf()) == config
