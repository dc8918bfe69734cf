"""Kinds of page summary from outside in policies: the engine's samples, prices, and what contradicts itself."""

import dataclasses

import pytest
from kinetics_kernels.summaries import mean, registry
from kinetics_kernels.summaries.kind import SummaryKind
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError


@pytest.fixture
def registered(monkeypatch):
    """Two kinds: the mean under another name, and the mean twice, of which both halves count."""
    monkeypatch.setattr(registry, "_kinds", {**registry._kinds})
    registry.register_summary(SummaryKind("also_mean", 1, mean.make, mean.score))

    def make_twice(keys):
        return mean.make(keys) * 2

    def score_twice(query, vectors, scale, dot):
        return 0.5 * (dot(query, vectors[0]) + dot(query, vectors[1]))

    registry.register_summary(SummaryKind("mean_twice", 2, make_twice, score_twice))


@pytest.mark.slow
def test_a_kind_of_the_same_scores_gives_the_same_samples_and_counts_its_own_vectors(registered, tmp_path):
    lm = kj.load(write_checkpoint(tmp_path, tiny_config(), seed=2), dtype="float32")
    drawn = {
        kind: lm.generate(
            tiny_prompts(2, first=18),
            n=2,
            attention=f"block_topk:pages=3,page_size=4,dense_layers=none,summary={kind}",
            sampling=kj.Sampling(max_tokens=20, seed=1),
        )
        for kind in ("mean", "mean_twice")
    }
    tokens = {kind: [sample.output_tokens for sample in samples] for kind, samples in drawn.items()}
    assert tokens["mean"] == tokens["mean_twice"]
    read = {kind: sum(sample.summary_vectors for sample in samples) for kind, samples in drawn.items()}
    assert read["mean_twice"] == 2 * read["mean"] > 0


def test_prices_count_a_kinds_vectors(registered):
    config = kj.ModelConfig.named("0.6B")
    costs = {
        kind: kj.generation_cost(
            config,
            prompt_tokens=256,
            output_tokens=512,
            trials=1,
            attention=kj.BlockTopK(pages=4, summary=kind),
            convention="traffic",
        )
        for kind in ("mean", "also_mean", "mean_twice", "min_max")
    }
    assert costs["also_mean"].total == costs["mean"].total < costs["mean_twice"].total == costs["min_max"].total


def test_a_policy_that_contradicts_its_kind_is_refused(registered):
    @dataclasses.dataclass(frozen=True)
    class Own(kj.AttentionPolicy):
        kind, price, cache_summary = "own", "measured", "mean_twice"

    assert Own().summary_vectors == 2

    @dataclasses.dataclass(frozen=True)
    class Wrong(Own):
        summary_vectors = 1

    with pytest.raises(PolicyError, match="own: summary_vectors is 1, and a mean_twice summary has 2; leave summary_v"):
        Wrong()

    @dataclasses.dataclass(frozen=True)
    class Unknown(Own):
        cache_summary = "median"

    with pytest.raises(PolicyError, match=r"own: summary 'median' is not known .known: mean, min_max, mean_std"):
        Unknown()
