"""Qwen2, Llama types and mixtures of experts: the engine decodes what the full forward says; experts and RoPE alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import LLAMA3, MOE, PARITY_CASES, tiny_config, tiny_prompts, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints.hf import load_hf
from kinetics_jax.config import Llama3Scaling, ModelConfig
from kinetics_jax.costs.memory import total_parameters
from kinetics_jax.engine.engine import Request
from kinetics_jax.errors import CheckpointError
from kinetics_jax.models.qwen3 import MixtureOfExperts, Qwen3, rope_table
from kinetics_jax.settings import EngineSettings

GREEDY = kj.Sampling(temperature=0, max_tokens=12)


def load(folder, case: str, seed: int = 5, **changes):
    return kj.load(write_checkpoint(folder, tiny_config(**PARITY_CASES[case] | changes), seed=seed), dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen2", "llama3_rope_scaling", "moe", "moe_mlp_only_layers"])
def test_cached_greedy_equals_the_argmax_chain(case, tmp_path):
    lm = load(tmp_path, case)
    prompts = tiny_prompts(8, first=13)
    everything = kj.BlockTopK(pages=16, page_size=4, dense_layers=())
    for sample, prompt in zip(lm.generate(prompts, sampling=GREEDY, attention=everything), prompts, strict=True):
        text = prompt + sample.output_tokens
        padded = np.zeros((1, 36), np.int32)
        padded[0, : len(text)] = text
        chain = np.asarray(lm.logits(padded))[0].argmax(-1)[len(prompt) - 1 : len(text) - 1]
        assert sample.output_tokens == chain.tolist()


@pytest.mark.slow
def test_a_mixture_does_not_mix_neighbours(tmp_path):
    """Samples keep their bits whoever shares their experts."""
    lm = load(tmp_path, "moe")
    hot = kj.Sampling(temperature=1.0, max_tokens=20, seed=3)
    engine = lm.engine(sampling=hot, settings=EngineSettings(slots=6))
    requests = [Request(f"p{index}", prompt, range(2)) for index, prompt in enumerate(tiny_prompts(6, first=3))]

    def outputs(requests):
        return {(done.problem, done.sample): done.output_tokens for done in engine.run(requests)}

    together = outputs(requests)
    assert len(together) == 12
    assert outputs(requests[::-1]) == together
    assert outputs([Request("p4", requests[4].prompt, [1])]) == {("p4", 1): together["p4", 1]}


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [True, False])
def test_experts_against_a_loop_in_float64(normalise):
    config = ModelConfig.from_hf(tiny_config(**MOE | {"norm_topk_prob": normalise}))
    layer = MixtureOfExperts(config, rngs=nnx.Rngs(1), dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 9, config.hidden_size))
    gate, up, down = (
        np.asarray(getattr(layer.experts, f"{name}_proj").weight[...], np.float64) for name in ("gate", "up", "down")
    )
    router = np.asarray(layer.gate.weight[...], np.float64)
    for token, ours in zip(
        np.asarray(x, np.float64).reshape(18, -1), np.asarray(layer(x)).reshape(18, -1), strict=True
    ):
        weights = np.exp(router @ token)
        weights /= weights.sum()
        best = np.argsort(-weights)[: config.experts_per_token]
        total = weights[best].sum() if normalise else 1.0
        expected = 0
        for expert in best:
            inner = token @ gate[expert]
            inner = inner / (1 + np.exp(-inner)) * (token @ up[expert])
            expected = expected + weights[expert] / total * (inner @ down[expert])
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_llama3_scaling_keeps_divides_and_interpolates():
    """Against the wave lengths, as the model card tells the rule."""
    scaling, dim, theta = Llama3Scaling(**LLAMA3), 64, 500.0
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    cos, sin = rope_table(jnp.asarray([[1]]), dim, theta, scaling)
    angles = np.arctan2(np.asarray(sin)[0, 0], np.asarray(cos)[0, 0])
    wave = 2 * np.pi / plain
    longest, shortest = 64 / scaling.low_freq_factor, 64 / scaling.high_freq_factor
    share = (64 / wave - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - share) * plain / scaling.factor + share * plain
    expected = np.where(wave < shortest, plain, np.where(wave > longest, plain / scaling.factor, between))
    assert {*np.sign(wave - shortest), *np.sign(longest - wave)} == {-1, 1}
    assert ((wave > shortest) & (wave < longest)).sum() >= 4
    np.testing.assert_allclose(angles, expected, rtol=1e-5)


@pytest.mark.parametrize("case", PARITY_CASES)
def test_parameters_are_counted_as_they_are(case):
    config = ModelConfig.from_hf(tiny_config(**PARITY_CASES[case]))
    state = nnx.state(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    stored = sum(leaf.size for leaf in jax.tree.leaves(state))
    idle = config.num_experts - config.experts_per_token
    idle *= len(config.moe_layers) * 3 * config.hidden_size * config.moe_intermediate_size
    assert config.active_parameters == stored - idle
    assert total_parameters(config) == stored
    sizes = {".".join(map(str, path)): leaf.size for path, leaf in nnx.to_flat_state(state) if len(leaf.shape) > 1}
    embedding = 0 if config.tie_word_embeddings else sizes["embed_tokens.weight"]
    assert config.matmul_parameters == sum(sizes.values()) - idle - embedding


def test_faults_of_experts_are_named_by_the_tensors_of_the_file(tmp_path):
    config = tiny_config(**MOE)
    tensors = tiny_tensors(config)
    prefix = "model.layers.0.mlp.experts."
    del tensors[prefix + "3.up_proj.weight"]
    tensors[prefix + "2.gate_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors[prefix + "4.gate_proj.weight"][1, 1] = np.inf
    tensors[prefix + "8.gate_proj.weight"] = np.zeros((20, 32), np.float32)
    with pytest.raises(CheckpointError) as error:
        kj.load(write_checkpoint(tmp_path, config, tensors))
    for fault in (
        "missing: layers.0.mlp.experts.3.up_proj.weight",
        "layers.0.mlp.experts.2.gate_proj.weight has shape [3, 3], expected [20, 32]",
        "layers.0.mlp.experts.4.gate_proj.weight holds 1 values that are NaN or infinite",
        "not part of this model: layers.0.mlp.experts.8.gate_proj.weight",
    ):
        assert fault in str(error.value)


def test_experts_of_several_dtypes_need_one_named(tmp_path):
    config = tiny_config(**MOE)
    tensors = tiny_tensors(config)
    tensors["model.layers.0.mlp.experts.5.up_proj.weight"] = np.zeros((20, 32), np.float16)
    write_checkpoint(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=r"experts\.5\.up_proj\.weight is stored as float16, and another expert"):
        load_hf(tmp_path, ModelConfig.from_hf(config), dtype=None)
    load_hf(tmp_path, ModelConfig.from_hf(config), dtype="float32")


def test_what_a_run_keeps_of_a_configuration_is_read_back():
    config = ModelConfig.from_hf(tiny_config(**PARITY_CASES["llama3_rope_scaling"]))
    kept = dataclasses.asdict(config) | {"mlp_only_layers": []}
    assert ModelConfig(**kept) == config
