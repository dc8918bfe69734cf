"""Kinds of page summary: registered from outside, refused where unknown, and what each code path does with them."""

import importlib.metadata
import sys
import types

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from kinetics_kernels import reference
from kinetics_kernels.backends import implementation, kernel_backends
from kinetics_kernels.ops.select_pages import mosaic_gpu
from kinetics_kernels.summaries import mean, registry
from kinetics_kernels.summaries.registry import register_summary, summary_kind, summary_names

from . import oracle
from .test_lowering import target_device


def ends(keys):
    """First and last key of a page, and its largest values: three vectors."""
    return keys[..., 0, :], keys[..., -1, :], jnp.max(keys, axis=-2)


def nearest_end(query, vectors, scale, dot):
    """The larger logit of the two keys, and a bit of the bound."""
    first, last, largest = vectors
    return jnp.maximum(dot(query * scale, first), dot(query * scale, last)) + 0.25 * dot(jnp.abs(query), largest)


def kind_of(name, **changes) -> kernels.SummaryKind:
    return kernels.SummaryKind(name, **{"vectors": 3, "make": ends, "score": nearest_end} | changes)


@pytest.fixture
def kinds(monkeypatch):
    """The registry, put back as it was when the test ends."""
    monkeypatch.setattr(registry, "_kinds", {**registry._kinds})


def state_of(kind: str, vectors: int, **shape) -> oracle.Paged:
    """A random state whose pools of summaries are of a kind, not written yet."""
    state = oracle.random_state(np.random.default_rng(3), [30, 8, 0], page_size=8, **shape)
    axis = (vectors,) if vectors > 1 else ()
    state.summary = kind
    state.summaries = np.zeros((*state.summaries.shape[:2], *axis, state.q.shape[2]), np.float32)
    return state


def test_a_kind_of_the_users_own_runs_on_the_reference(kinds):
    """Made as its rule says when a page fills, and its best pages are attended, against NumPy."""
    register_summary(kind_of("ends"))
    state = state_of("ends", 3, group=2)
    new = np.ones((3, 2, 16), np.float32)
    pools = kernels.append_kv(
        state.k_pages, state.v_pages, state.summaries, new, new, state.page_table, state.lengths, summary="ends"
    )
    page = state.page_table[1, 0]  # of 8 tokens: filled by this one
    keys = np.asarray(pools[0])[:, page]
    np.testing.assert_array_equal(pools[2][:, page], np.stack([keys[:, 0], keys[:, -1], keys.max(axis=1)], axis=1))
    assert not np.asarray(pools[2])[:, state.page_table[0, :3]].any()  # not filled by this step

    stored = np.asarray(reference.page_summary(jnp.asarray(state.k_pages), "ends"), np.float64)
    call = stored.astype(np.float32), state.page_table, state.lengths
    selected, _ = kernels.select_pages(state.q, *call, page_size=8, pages=3, summary="ends")
    for head in range(2):
        query = state.q[0, 2 * head : 2 * head + 2].astype(np.float64).mean(axis=0)
        first, last, largest = np.moveaxis(stored[head, state.page_table[0, :4]], 1, 0)
        scores = np.maximum(first @ query, last @ query) / 4 + 0.25 * largest @ np.abs(query)
        best = 1 + int(np.argmax(scores[1:3]))
        assert [*np.asarray(selected[0, head])] == [*state.page_table[0, [0, best, 3]]]


@pytest.mark.parametrize("op", ["append_kv", "select_pages"])
def test_an_unknown_kind_is_refused_by_every_op_and_kernel(op):
    state = oracle.random_state(np.random.default_rng(0), [30], head_dim=128, page_size=8, spare_pages=4)
    new, tables = np.ones((1, 2, 128), np.float32), (state.page_table, state.lengths)
    call = {
        "append_kv": (state.k_pages, state.v_pages, None, new, new, *tables),
        "select_pages": (state.q, state.summaries, *tables),
    }[op]
    settings = {} if op == "append_kv" else {"page_size": 8, "pages": 3}
    functions = [getattr(kernels, op), getattr(reference, op), *(implementation(op, b) for b in kernel_backends(op))]
    assert len(functions) == 5
    for function in functions:
        with pytest.raises(ValueError, match=f"{op}: summary 'median' is not known .known: mean, min_max, mean_std"):
            function(*call, **settings, summary="median")
    with pytest.raises(ValueError, match="page_summary: summary 'median' is not known"):
        reference.page_summary(jnp.ones((4, 16)), "median")
    with pytest.raises(ValueError, match="select_pages: summary 'median' is not known"):
        mosaic_gpu.page_scores(state.q, state.summaries, state.page_table, "median", 1.0)


def test_a_kernel_without_code_for_a_kind_refuses_it_by_name(kinds):
    """Forced; a pool without summaries needs none, so appending to it is not refused."""
    code = {"triton": kernels.KernelCode(score=mean.gpu_score)}
    register_summary(kind_of("first", vectors=1, make=lambda keys: keys[..., 0, :], score=mean.score, kernels=code))
    state = oracle.random_state(np.random.default_rng(0), [30], page_size=8)
    new, tables = np.ones((1, 2, 16), np.float32), (state.page_table, state.lengths)
    pools = state.k_pages, state.v_pages
    refused = "append_kv: the triton backend has no code for summaries of kind first .it has: mean, min_max, mean_std"
    with pytest.raises(NotImplementedError, match=refused):
        kernels.append_kv(*pools, state.summaries, new, new, *tables, summary="first", backend="triton")
    append = implementation("append_kv", "triton")
    assert append(*pools, None, new, new, *tables, summary="first", interpret=True)[2] is None
    settings = {"page_size": 8, "pages": 3, "summary": "first"}
    for backend in ("mosaic_gpu", "mosaic_tpu"):
        with pytest.raises(NotImplementedError, match=f"{backend} backend (has no code for .* first|takes jax 0.11)"):
            implementation("select_pages", backend)(state.q, state.summaries, *tables, **settings)
    chosen = implementation("select_pages", "triton")(state.q, state.summaries, *tables, **settings, interpret=True)
    expected = reference.select_pages(state.q, state.summaries, *tables, **settings)
    np.testing.assert_array_equal(chosen[0], expected[0])


def triton_make(over_tiles, zeros, page_size):
    largest = over_tiles(lambda so_far, keys: jnp.maximum(so_far, jnp.max(keys, axis=0)), zeros - jnp.inf)
    (middle,) = mean.triton_make(over_tiles, zeros, page_size)
    return middle, -middle, largest


def either_way(keys):
    middle = jnp.mean(keys, axis=-2)
    return middle, -middle, jnp.max(keys, axis=-2)


def gpu_score(query, vector, scale, total):
    logits = jnp.maximum(total(query * scale * vector(0)), total(query * scale * vector(1)))
    return logits + 0.25 * total(jnp.abs(query) * vector(2))


def test_a_kinds_code_runs_in_the_kernels_that_it_is_written_for(kinds):
    """Three vectors and a maximum, which no kind of the package has, interpreted on Triton."""
    code = {"triton": kernels.KernelCode(triton_make, gpu_score)}
    register_summary(kind_of("either_way", make=either_way, kernels=code))
    state = state_of("either_way", 3)
    new = np.asarray(np.random.default_rng(1).standard_normal((3, 2, 16)), np.float32)
    append_call = state.k_pages, state.v_pages, state.summaries, new, new, state.page_table, state.lengths
    append, select = (implementation(name, "triton") for name in ("append_kv", "select_pages"))
    written = append(*append_call, summary="either_way", interpret=True)
    expected = reference.append_kv(*append_call, summary="either_way")
    np.testing.assert_allclose(written[2], expected[2], rtol=1e-6, atol=1e-6)
    call = state.q, reference.page_summary(jnp.asarray(state.k_pages), "either_way"), state.page_table, state.lengths
    settings = {"page_size": 8, "pages": 3, "summary": "either_way"}
    for fused in (True, False):
        chosen = select(*call, **settings, fused=fused, interpret=True)
        np.testing.assert_array_equal(chosen[0], reference.select_pages(*call, **settings)[0])
    wrong = {"triton": kernels.KernelCode(lambda *a: triton_make(*a)[:2], gpu_score)}
    register_summary(kind_of("too_few", make=either_way, kernels=wrong))
    with pytest.raises(ValueError, match="summary 'too_few': make of triton returned 2 arrays, not 3"):
        append(*append_call, summary="too_few", interpret=True)


def test_by_default_a_kind_without_code_falls_back_with_a_warning(kinds):
    register_summary(kind_of("ends"))
    state = state_of("ends", 3, head_dim=128)
    call = state.q, state.summaries, state.page_table, state.lengths
    with (
        target_device("NVIDIA H100 80GB HBM3"),
        pytest.warns(UserWarning, match="has no code for summaries of kind ends .*; falling back to the reference"),
    ):
        jax.make_jaxpr(lambda *a: kernels.select_pages(*a, page_size=8, pages=3, summary="ends"))(*call)


def test_code_of_the_wrong_shape_is_named(kinds):
    state = oracle.random_state(np.random.default_rng(0), [30], page_size=8)
    register_summary(kind_of("one_too_many", vectors=1))
    with pytest.raises(ValueError, match=r"summary 'one_too_many': make returned arrays of .*, not 1 of \(2, 16\)"):
        reference.page_summary(jnp.ones((2, 4, 16)), "one_too_many")
    register_summary(kind_of("no_score", vectors=1, make=mean.make, score=lambda query, *_: query))
    call = state.q, state.summaries, state.page_table, state.lengths
    with pytest.raises(ValueError, match=r"'no_score': score returned an array of \(1, 2, 16\), not \(1, 2, 5\)"):
        kernels.select_pages(*call, page_size=8, pages=3, summary="no_score")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "a,b"}, "summary 'a,b': a name is a word"),
        ({"name": "none"}, "summary 'none': a name is a word"),
        ({"vectors": 0}, "vectors is a whole number of at least 1, not 0"),
        ({"vectors": True}, "vectors is a whole number of at least 1, not True"),
        ({"score": None}, "score is a function, not None"),
        ({"kernels": {"triton": ends}}, r"kernels\['triton'\] is a KernelCode, not <function"),
    ],
)
def test_what_is_no_kind_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        kind_of(**{"name": "mine"} | changes)


def test_a_name_is_one_kinds(kinds):
    known = summary_names()
    with pytest.raises(TypeError, match="register_summary takes a SummaryKind, not 'mean'"):
        register_summary("mean")
    with pytest.raises(ValueError, match=r"summary 'mean' is known already .kinetics_kernels\.summaries\.mean\.make"):
        register_summary(kind_of("mean"))
    register_summary(summary_kind("mean"))
    first = register_summary(kind_of("ends"))
    assert register_summary(first) is first
    assert summary_names() == [*known, "ends"]


def test_a_kind_defined_anew_takes_the_place_of_the_one_before(kinds):
    """A notebook's cell, run again: programs that were compiled for the name are not used again."""
    state = oracle.random_state(np.random.default_rng(0), [60], page_size=8)
    call = state.q, state.summaries, state.page_table, state.lengths
    select = jax.jit(lambda *a: kernels.select_pages(*a, page_size=8, pages=3, summary="cell"))
    register_summary(kind_of("cell", vectors=1, score=mean.score))
    before = select(*call)[0]
    register_summary(kind_of("cell", vectors=1, score=lambda query, vectors, scale, dot: -dot(query, vectors[0])))
    assert (np.asarray(select(*call)[0]) != np.asarray(before)).any()


def offered(monkeypatch, **values) -> None:
    """Entry points of installed packages, as importlib.metadata would find them."""
    entries = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, registry.GROUP) for name, each in values.items() for value in each
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **query: entries.select(**query))


def test_an_installed_package_offers_kinds(kinds, monkeypatch):
    known, module = summary_names(), types.ModuleType("a_package_of_kinds")
    module.ENDS = kind_of("ends")
    monkeypatch.setitem(sys.modules, "a_package_of_kinds", module)
    ends_of = "a_package_of_kinds:ENDS"
    offered(monkeypatch, ends=[ends_of], gone=["no_such_package:GONE"], other=[ends_of], twice=[ends_of, "b:ENDS"])
    assert summary_names() == [*known, "ends", "gone", "other", "twice"]
    assert summary_kind("ends") is module.ENDS
    with pytest.raises(ValueError, match=r"cannot be loaded .ModuleNotFoundError: No module named 'no_such_package'"):
        summary_kind("gone")
    with pytest.raises(ValueError, match="not a SummaryKind of this name"):
        summary_kind("other")
    with pytest.raises(ValueError, match="summary 'twice': several packages offer it"):
        summary_kind("twice")
    with pytest.raises(ValueError, match="summary 'ends' is known already"):
        register_summary(kind_of("ends", make=mean.make))
