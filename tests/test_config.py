"""config.json in its spellings, and the published sizes."""

import json
import warnings

import pytest
from paths import SHARED
from tiny import LLAMA, LLAMA3, MOE, PARITY_CASES, QWEN2, tiny_config

from kinetics_jax.config import PUBLISHED, PUBLISHED_OTHERS, ConfigError, ModelConfig

REAL = SHARED / "configs"
WINDOW = {"use_sliding_window": True}


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
     ("32B", 32.762, 262_144), ("30B-A3B", 3.353, 98_304), ("DeepSeek-R1-Distill-Llama-8B", 8.030, 131_072)],
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
     ("DeepSeek-R1-Distill-Qwen-32B", 32_763_876_352, 262_144), ("Qwen2.5-72B-Instruct", 72_706_203_648, 327_680),
     ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248, 131_072),
     ("R1-Distill-Llama-70B", 70_553_706_496, 327_680)],
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
        ({"is_causal": False}, "is_causal = False"),
        ({"logits_scaling": 8.0}, r"logits_scaling = 8\.0"),
        ({"use_qk_norm": False}, "use_qk_norm = False"),
        ({**QWEN2, "qk_norm": True}, "qk_norm = True"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers 2"),
        ({**WINDOW, "sliding_window": 511}, "a window of 511 within 512 positions"),
        ({**WINDOW, "sliding_window": 16, "max_window_layers": 1}, "a window of 16"),
        ({**MOE, **WINDOW, "sliding_window": 16, "max_window_layers": 9}, "a window of 16"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 600}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "fp8", "ignore": ["x" * 50] * 200}}, "'fp8' .quantised weights"),
        ({"architectures": ["LlamaForCausalLM"]}, "contradicts itself: model_type is qwen3"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures must be a list"),
        ({"dtype": "bfloat16"}, "contradicts itself: dtype = 'bfloat16', torch_dtype = 'float32'"),
        ({**MOE, "num_local_experts": 9}, "contradicts itself: num_experts = 8, num_local_experts = 9"),
        (
            {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
            r"rope_theta = 1000000\.0, rope_scaling\.rope_theta",
        ),
        ({"rope_parameters": {"rope_theta": 500.0}}, "contradicts itself: rope_theta"),
        (
            {"rope_scaling": {"rope_type": "default", "type": "yarn"}},
            "says both rope_type = 'default' and type = 'yarn'",
        ),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "llama3", **LLAMA3}},
            "rope_parameters and rope_scaling contradict each other",
        ),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 65,536"),
        ({"hidden_size": 10**30}, "hidden_size must be at most"),
        ({"rope_theta": 10**400}, "rope_theta must be at most 1e\\+30"),
        ({"vocab_size": True}, "vocab_size must be a whole number"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings must be at most"),
        ({"eos_token_id": [1] * 5000}, "eos_token_id must be token ids"),
        ({"model_type": ["qwen3"]}, "not supported"),
        ({"torch_dtype": {"a": 1}}, "dtype .* is not one of"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, says):
    with pytest.raises(ConfigError, match=says) as error:
        ModelConfig.from_hf(tiny_config(**change))
    assert str(error.value).startswith("config: ")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        {**WINDOW, "sliding_window": 512},
        {**WINDOW, "sliding_window": 16, "max_window_layers": 2},
        {**QWEN2, **WINDOW, "sliding_window": 16, "layer_types": ["full_attention"] * 2},
        {**WINDOW, "sliding_window": None, "layer_types": ["full_attention"] * 2, "max_window_layers": 2},
        {**QWEN2, "attention_bias": True},
        {"is_causal": True, "use_qk_norm": True, "quantization_config": {}},
        {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 1_000_000}},
        {"architectures": None, "torch_dtype": "float64"},
    ],
)
def test_what_only_says_what_is_so(change):
    kinds = {
        name: change[name] for name in ("model_type", "architectures", "head_dim", "attention_bias") if name in change
    }
    plain = {**kinds, "attention_bias": None, "architectures": kinds.get("architectures")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ModelConfig.from_hf(tiny_config(**change)) == ModelConfig.from_hf(tiny_config(**plain))


def test_theta_within_the_scaling_counts():
    fields = tiny_config(**LLAMA, rope_theta=None, rope_scaling={"rope_type": "default", "rope_theta": 500.0})
    assert ModelConfig.from_hf(fields).rope_theta == 500.0


def test_unknown_fields_are_named_in_one_warning():
    fields = tiny_config(depth_scale=0.5, new_thing=None, off=False, **{"n\x1b" * 100: "x" * 5000})
    with pytest.warns(UserWarning, match=r"not known for qwen3 are ignored: depth_scale = 0\.5, n") as caught:
        ModelConfig.from_hf(fields)
    (said,) = caught
    assert len(str(said.message)) < 500
    assert "\x1b" not in str(said.message)
    assert "new_thing" not in str(said.message)
    with pytest.warns(UserWarning, match="num_experts = 8"):
        ModelConfig.from_hf(tiny_config(num_experts=8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Qwen3", "Qwen3Moe", "Qwen2", "Llama"])
def test_what_transformers_writes_is_all_known(kind, tmp_path):
    """Its defaults, with every field that it can write."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(architectures=[f"{kind}ForCausalLM"])
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = [
            ModelConfig.from_hf(fields) for fields in (saved, {**json.loads(config.to_json_string(False)), **saved})
        ]
    assert read[0].hidden_size == config.hidden_size
    assert read[0].head_dim == getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)


def test_the_heads_of_a_mixture_divide_its_width():
    """As transformers, whose qwen3_moe has no default for head_dim."""
    assert ModelConfig.from_hf(tiny_config(**MOE, head_dim=None)).head_dim == 8
    assert ModelConfig.from_hf(tiny_config(head_dim=None)).head_dim == 128


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
    with pytest.raises(ConfigError, match="did you mean deepseek-ai/DeepSeek-R1-Distill-Llama-8B"):
        ModelConfig.named("DeepSeek-R1-Distil-Llama-8B")


def test_a_published_name_in_any_case_and_without_its_organisation():
    full = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    for name in (full, full.lower(), full.partition("/")[2], "r1-distill-qwen-1.5b"):
        assert ModelConfig.named(name).name == full


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
