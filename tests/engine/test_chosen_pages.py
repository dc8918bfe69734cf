"""The pages that a replay notes are those that the run chose; their mass against float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from masked_forward import attended
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.causal import full_attend
from kinetics_jax.engine import chosen_pages as module
from kinetics_jax.engine.chosen_pages import chosen_pages
from kinetics_jax.engine.engine import Request
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.settings import EngineSettings, RequestError

SPARSE = kj.BlockTopK(pages=4, page_size=4, dense_layers=())
HOT = kj.Sampling(temperature=1.0, max_tokens=30, seed=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


@dataclasses.dataclass(frozen=True)
class Telling(kj.BlockTopK):
    """Block top-k that tells the host what it attends to, row by row."""

    kind = "telling"

    def choose(self, step):
        chosen = super().choose(step)
        layer = step.layer
        jax.debug.callback(
            lambda *seen: TOLD.append((layer, *map(np.asarray, seen))), chosen.tables, step.page_table, step.lengths
        )
        return chosen


TOLD: list = []


@pytest.mark.slow
def test_the_replay_chooses_what_the_run_chose(lm):
    """Every step, layer and KV head of samples that are drawn side by side."""
    TOLD.clear()
    prompts = tiny_prompts(3, first=20)
    requests = [Request(f"p{index}", prompt, [0]) for index, prompt in enumerate(prompts)]
    policy = Telling(pages=4, page_size=4, dense_layers=())
    engine = lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=3, chunk=8))
    samples = {sample.problem: sample for sample in engine.run(requests)}
    jax.effects_barrier()
    run = {}
    for layer, tables, page_table, lengths in TOLD:
        for row, length in enumerate(lengths.tolist()):
            for head in range(2):
                logical = np.isin(page_table[row], tables[row, head][tables[row, head] >= 0]) & (page_table[row] >= 0)
                run[row, length, layer, head] = np.flatnonzero(logical).tolist()
    compared = 0
    for slot, request in enumerate(requests):  # as they were admitted
        drawn = Drawn(request.prompt, samples[request.problem].output_tokens, request.problem, 0)
        record = chosen_pages(lm.graph, lm.weights, lm.config, drawn, policy=SPARSE, seed=3, rows=3)
        assert len(record.lengths) == len(drawn.tokens) - 1
        for step, layer, head in np.ndindex(record.mass.shape):
            pages = np.flatnonzero(record.pages[step, layer, head]).tolist()
            assert pages == run[slot, int(record.lengths[step]), layer, head]
            compared += 1
        assert record.mass.min() > 0
        assert record.mass[-1].max() < 0.999, "something is left out"
    assert compared > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        SPARSE,
        kj.TokenTopK(budget=9),
        pytest.param(kj.RandomBlocks(pages=4, page_size=4, dense_layers=(1,)), marks=pytest.mark.exhaustive),
        pytest.param(kj.SlidingWindow(budget=9), marks=pytest.mark.exhaustive),
        pytest.param(kj.TopPPages(p=0.6, pages=6, page_size=4, dense_layers=(1,)), marks=pytest.mark.exhaustive),
        pytest.param(kj.UnbiasedBlockTopK(pages=5, page_size=4, samples=2), marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_pages_and_mass_are_the_rules_own(lm, policy, monkeypatch):
    """By the rule as its own test states it, over the queries and keys of the replay's steps."""
    seen = []
    real = module.decode_attend

    def watched(rule, table, lengths, keys, backend):
        attend = real(rule, table, lengths, keys, backend=backend)

        def noting(layer, q, k, v, cache):
            jax.debug.callback(
                lambda *each: seen.append((layer, *map(np.asarray, each))), q[0, 0], k[0, 0], lengths[0],
                jax.random.key_data(keys[0]),
            )  # fmt: skip
            return attend(layer, q, k, v, cache)

        return noting

    monkeypatch.setattr(module, "decode_attend", watched)
    jax.clear_caches()
    prompt = [7]
    tokens = np.random.default_rng(1).integers(4, 131, 34).tolist()
    record = chosen_pages(lm.graph, lm.weights, lm.config, Drawn(prompt, tokens), policy=policy)
    jax.effects_barrier()
    keys: dict = {0: [], 1: []}
    first = lm_keys(lm, prompt)
    for layer in (0, 1):
        keys[layer].append(first[layer])
    checked = 0
    for layer, query, key, length, data in seen:
        if not length:
            continue
        keys[layer].append(key.astype(np.float64))
        step = int(length) - len(prompt) - 1
        text = np.stack(keys[layer])  # [length, kv_heads, head_dim]
        assert len(text) == length
        for head in range(2):
            mine = query[2 * head : 2 * head + 2].astype(np.float64)
            logits = mine @ text[:, head].T * 8**-0.5
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            kept = range(int(length))
            if not policy.is_dense(layer):
                kept = attended(policy, mine, text[:, head], drawing(data, layer, head))
            want = np.zeros(record.pages.shape[-1], bool)
            want[[position // policy.page_size for position in kept]] = True
            np.testing.assert_array_equal(record.pages[step, layer, head], want)
            assert record.mass[step, layer, head] == pytest.approx(weights[:, sorted(kept)].sum(-1).mean(), abs=1e-5)
            checked += 1
    assert checked == 2 * 2 * 33


def drawing(data, layer, head):
    """The random number of a page under a token's key."""

    def draw(page: int) -> float:
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        for fold in (0x52424C4B, layer, head, page):
            key = jax.random.fold_in(key, fold)
        return float(jax.random.uniform(key))

    return draw


def lm_keys(lm, prompt):
    """Keys of a prompt of one token, by layer."""
    found = []

    def attend(layer, q, k, v, state):
        found.append(np.asarray(k[0, 0], np.float64))
        return full_attend(layer, q, k, v, state)

    nnx.merge(lm.graph, lm.weights)(jnp.array([prompt]), jnp.zeros((1, 1), jnp.int32), attend)
    return found


@pytest.mark.slow
def test_a_language_model_offers_it(lm):
    """Some steps alone; dense layers hold everything; places that are none are refused."""
    prompt, tokens = tiny_prompts(1, first=20)[0], list(range(4, 40))
    policy = "block_topk:pages=4,page_size=4,dense_layers=0"
    whole = lm.chosen_pages(prompt, tokens, attention=policy)
    some = lm.chosen_pages(prompt, tokens, attention=policy, at=[3, 20, 35])
    assert some.lengths.tolist() == [23, 40, 55]
    for place, step in enumerate((2, 19, 34)):
        np.testing.assert_array_equal(some.pages[place], whole.pages[step])
        np.testing.assert_array_equal(some.mass[place], whole.mass[step])
    assert (whole.mass[:, 0] == 1).all()
    assert whole.pages[-1, 0, 0].sum() == 14
    assert (whole.pages[10:, 1].sum(-1) == 4).all()
    with pytest.raises(RequestError, match=r"positions in 1 … 35, got 36"):
        lm.chosen_pages(prompt, tokens, attention=policy, at=[36])
