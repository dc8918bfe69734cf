"""Settings by row: the thresholds of one setting, rules against NumPy, and codes where nothing can be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.engine.logits import IN_OUTPUT, IN_PROMPT, Rows, draw_rows, filter_rows, ruled_logits
from kinetics_jax.engine.sampling import BLOCKED, HOOK_NONFINITE, NONFINITE, filter_logits, sample_keys, seed_key
from kinetics_jax.settings import Sampling

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7, top_k=1),
    Sampling(temperature=0.6, top_k=20, top_p=0.95),
    Sampling(temperature=1.3, top_p=0.01),
    Sampling(min_p=0.2, top_k=7),
    Sampling(top_k=5000, top_p=0.5, min_p=0.01, temperature=2.0),
]
EOS = (0, 3)


def rows_of(samplings, **more) -> Rows:
    columns = {name: [getattr(each, name) for each in samplings] for name in ("temperature", "top_k", "top_p", "min_p")}
    arrays = {
        name: jnp.asarray(values, np.int32 if name == "top_k" else np.float32) for name, values in columns.items()
    }
    return Rows(**arrays, **more)


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_filters_by_row_are_those_of_one_setting(ties):
    logits = np.random.default_rng(0).normal(0, 3, (len(SAMPLINGS), 200)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    filtered = np.asarray(jax.jit(filter_rows)(logits, rows_of(SAMPLINGS)))
    for index, sampling in enumerate(SAMPLINGS):
        alone = np.asarray(filter_logits(jnp.asarray(logits[index : index + 1]), sampling))[0]
        np.testing.assert_array_equal(filtered[index] > -np.inf, alone > -np.inf)
        np.testing.assert_allclose(filtered[index][alone > -np.inf], alone[alone > -np.inf], rtol=1e-6)


def test_rules_in_order():
    """Penalties, then min_tokens, then allowed: transformers' formula for repetition, OpenAI's for presence."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4, 40)).astype(np.float32)
    seen = rng.integers(0, 4, (4, 40)).astype(np.uint8)
    allowed = rng.random((4, 40)) < 0.7
    rows = Rows(
        temperature=jnp.ones(4),
        repetition_penalty=jnp.array([1.0, 1.5, 0.8, 1.1]),
        presence_penalty=jnp.array([0.0, 0.5, -0.5, 2.0]),
        seen=jnp.asarray(seen),
        min_tokens=jnp.array([0, 5, 6, 9], jnp.int32),
        stop_ids=jnp.array([[7, 9], [8, -1], [-1, -1], [39, 7]], jnp.int32),
        allowed=jnp.asarray(allowed),
    )
    expected = logits.astype(np.float64)
    for row, (times, less) in enumerate(zip([1.0, 1.5, 0.8, 1.1], [0.0, 0.5, -0.5, 2.0], strict=True)):
        for token in range(40):
            if seen[row, token] & (IN_PROMPT | IN_OUTPUT):
                expected[row, token] *= times if expected[row, token] < 0 else 1 / times
            if seen[row, token] & IN_OUTPUT:
                expected[row, token] -= less
    for row, ends in ((2, EOS), (3, (*EOS, 39, 7))):  # at output position 5
        expected[row, list(ends)] = -np.inf
    expected[~allowed] = -np.inf
    found = ruled_logits(jnp.asarray(logits), jnp.full(4, 5, jnp.int32), rows, EOS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    after = rows.after(
        jnp.array([4, 5, 6, 7], jnp.int32), jnp.zeros(4, jnp.int32), jnp.array([True, True, False, True])
    )
    seen[[0, 1, 3], [4, 5, 7]] |= IN_OUTPUT
    np.testing.assert_array_equal(after.seen, seen)
    ends = rows.ends(jnp.array([7, 9, 3, -4], jnp.int32), EOS)
    assert ends.tolist() == [True, False, True, True]


def test_codes_stand_for_what_cannot_be_drawn():
    """The model's own fault, a hook's, and rules that leave nothing; a token that is given is given all the same."""

    def hook(logits, output, count):
        return jnp.where(count == 1, jnp.nan, jnp.where(count == 2, jnp.inf, jnp.where(count == 3, -jnp.inf, logits)))

    logits = jnp.zeros((6, 9)).at[0, 4].set(jnp.nan).at[5, 4].set(jnp.nan)
    rows = Rows(
        temperature=jnp.ones(6),
        hook=jnp.array([-1, 0, 0, 0, 0, -1], jnp.int32),
        output=jnp.full((6, 5), -1, jnp.int32),
        hooks=(hook,),
        log_probs=True,
    )
    keys = sample_keys(seed_key(0), jnp.uint32(1), jnp.arange(6))
    forced = jnp.array([-1, -1, -1, -1, 8, 8], jnp.int32)
    places = jnp.array([0, 1, 2, 3, 1, 0], jnp.int32)
    drawn = draw_rows(logits, keys, places, forced, rows, EOS)
    assert drawn.token.tolist() == [NONFINITE, HOOK_NONFINITE, HOOK_NONFINITE, BLOCKED, 8, NONFINITE]
    np.testing.assert_allclose(drawn.log_probs[4, 0], -np.log(9), rtol=1e-6)
