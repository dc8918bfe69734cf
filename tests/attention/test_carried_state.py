"""What a policy carries for each sequence over layers and steps: begun anew with every sample, and never another's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.engine.engine import Request
from kinetics_jax.settings import EngineSettings

HOT = kj.Sampling(temperature=1.0, max_tokens=40, seed=3)
PROMPT = 9


def turn(step, number):
    """The first page, the newest and, of the others, the one whose turn it is: `number [batch, kv_heads]`."""
    used = -(-step.lengths // step.page_size)
    middle = 1 + number % jnp.maximum(used - 2, 1)[:, None]
    scores = jnp.where(jnp.arange(step.max_pages) == middle[..., None], 1.0, 0.0)
    return step.choose_pages(scores, pages=3, sink_pages=1, recent_pages=1)


@dataclasses.dataclass(frozen=True)
class ByLength(AttentionPolicy):
    """A turn for every token drawn, read off the length of sequences whose prompts have PROMPT tokens; carries none."""

    kind = "by_length"
    page_size: int = 4

    def attend(self, step):
        drawn = jnp.broadcast_to((step.lengths - PROMPT - 1)[:, None], (step.batch, step.kv_heads))
        return step.attend_pages(*turn(step, drawn))


@dataclasses.dataclass(frozen=True)
class ByCount(AttentionPolicy):
    """The same turns, counted over steps; the first layer chooses, and carries its choice to the second."""

    kind = "by_count"
    page_size: int = 4

    def carried(self, head_dim):
        return {"steps": ((), "int32"), "tables": ((3,), "int32"), "covered": ((), "int32")}

    def attend_and_carry(self, step):
        carried = step.carried
        if step.layer == 0:
            tables, covered = turn(step, carried["steps"].T)
            carried = {"steps": carried["steps"] + 1, "tables": jnp.swapaxes(tables, 0, 1), "covered": covered.T}
        out = step.attend_pages(jnp.swapaxes(carried["tables"], 0, 1), carried["covered"].T)
        return out, carried


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def requests() -> list[Request]:
    prompts = [prompt[:PROMPT] for prompt in tiny_prompts(5, first=PROMPT)]
    return [Request(str(number), prompt, range(2)) for number, prompt in enumerate(prompts)]


def decoding_of(lm, policy, **settings):
    engine = lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=4, chunk=6, **settings))
    return engine.start(engine.check(requests()))


def outputs(decoding) -> dict:
    return {(done.problem, done.sample): done.output_tokens for done in decoding.run()}


@pytest.mark.slow
def test_counted_turns_are_those_of_the_length_in_every_slot(lm):
    """Ten samples through four slots, in a pool that holds them all and in one where they are preempted: a slot's state
    begins anew with each sample, and comes back with one that goes on elsewhere."""
    expected = outputs(decoding_of(lm, ByLength()))
    assert outputs(decoding_of(lm, ByCount())) == expected
    tight = decoding_of(lm, ByCount(), num_pages=27)
    assert outputs(tight) == expected
    assert tight.counts.preempted > 1
    assert outputs(decoding_of(lm, kj.BlockTopK(pages=3, page_size=4, dense_layers=()))) != expected


def test_a_cache_for_a_policy_that_carries_something_needs_its_rows(lm):
    with pytest.raises(ValueError, match=r"by_count carries something for each sequence.*rows"):
        empty_cache(ByCount(), lm.config, num_pages=4, dtype=jnp.float32)
    cache = empty_cache(ByCount(), lm.config, num_pages=4, dtype=jnp.float32, rows=3)
    assert jax.tree.map(jnp.shape, cache.carried) == {"steps": (2, 3), "tables": (2, 3, 3), "covered": (2, 3)}
    assert empty_cache(kj.Dense(), lm.config, num_pages=4, dtype=jnp.float32).carried == {}
