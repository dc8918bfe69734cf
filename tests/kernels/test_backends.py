"""The choice of a backend: by default, by name, and refused."""

import dataclasses
import functools
import importlib.util
import inspect
import json
import types
import warnings

import jax
import kinetics_kernels as kernels
import numpy as np
import pytest
from kinetics_kernels import backends, devices, masked, reference, tuning
from kinetics_kernels.backends import BACKENDS, KERNEL_OPS, chosen_backend, implementation, kernel_backends

from . import oracle
from .test_lowering import target_device

OPS = ("append_kv", "select_pages", "paged_decode", "block_topk_decode")  # with a kernel for every accelerator


@pytest.mark.parametrize("op", [*OPS, "grouped_matmul"])
def test_public_ops_take_what_the_reference_takes_and_a_backend(op):
    public = inspect.signature(getattr(kernels, op)).parameters
    specified = inspect.signature(getattr(reference, op)).parameters
    assert [*public] == [*specified, "backend"]
    assert all(public[name].default == parameter.default for name, parameter in specified.items())


@pytest.mark.parametrize("op", KERNEL_OPS)
def test_kernels_take_what_the_reference_takes(op):
    """Every backend that is found, whichever there are: the same arguments, then its own with defaults."""
    assert "triton" in kernel_backends(op)
    specified = inspect.signature(getattr(reference, op)).parameters
    for backend in kernel_backends(op):
        parameters = inspect.signature(implementation(op, backend)).parameters
        assert [*parameters][: len(specified)] == [*specified]
        own = [*parameters.values()][len(specified) :]
        assert all(parameter.default is not inspect.Parameter.empty for parameter in own)


SUITED = {"cpu": "xla", "gpu": "triton", "cuda": "triton", "tpu": "mosaic_tpu"}


@pytest.mark.parametrize("platform", SUITED)
def test_a_platform_has_its_kernels_and_says_why(platform):
    specified = {**vars(masked), **vars(reference)}
    assert {*backends.OPS} == {name for name in kernels.__all__ if inspect.isfunction(specified.get(name))}
    for op in backends.OPS:
        name, why = chosen_backend(op, platform)
        has_kernel = op in OPS or (op == "grouped_matmul" and platform != "tpu")
        assert name == (SUITED[platform] if has_kernel else "xla")
        assert why
    why = chosen_backend("block_topk_decode", platform)[1]
    if platform == "cpu":
        assert why == "the jnp reference; no kernel is made for cpu"
    else:
        assert "by heuristic for" in why
        assert "not measured on such a device: select_pages reads" in why
        assert "; paged_decode reads" in why
    assert chosen_backend("masked_decode", platform)[1] == "only the jnp reference has it"


def test_every_kernel_says_what_it_moves():
    assert [*backends.REASONS] == ["gpu", "tpu"]
    for platform, reasons in backends.REASONS.items():
        written = {op for op in KERNEL_OPS if {*kernel_backends(op)} & {*backends.PLATFORM_BACKENDS[platform]}}
        assert {*reasons} == written


KINDS = {
    "NVIDIA A100-SXM4-80GB": "triton",
    "NVIDIA H100 80GB HBM3": "triton",
    "NVIDIA H200": "triton",
    "NVIDIA of no known capability": "xla",
    "TPU v5 lite": "mosaic_tpu",
    "TPU v5": "mosaic_tpu",
    "TPU v6 lite": "mosaic_tpu",
    "TPU v4": "xla",
    "TPU7x": "xla",
    "a slide rule": "xla",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_compiled_for_decides(kind):
    assert chosen_backend("paged_decode")[0] == "xla"
    with target_device(kind):
        for op in OPS:
            assert chosen_backend(op)[0] == KINDS[kind]
            assert kind in chosen_backend(op)[1]
        assert (implementation("paged_decode", None) is reference.paged_decode) == (KINDS[kind] == "xla")
    assert implementation("paged_decode", None) is reference.paged_decode


@pytest.mark.parametrize(
    ("capability", "with_triton", "without"),
    [("7.0", "xla", "xla"), ("8.0", "triton", "xla"), ("8.9", "triton", "xla"), ("9.0", "triton", "mosaic_gpu"),
     ("10.0", "triton", "xla"), ("12.0", "triton", "xla"), ("gfx942", "xla", "xla"), (None, "xla", "xla")],
)  # fmt: skip
def test_a_gpu_that_is_here_is_asked_for_its_capability(monkeypatch, capability, with_triton, without):
    """And where jax has no Pallas-Triton any more, the kernels of its successor, which are Hopper's."""
    here = types.SimpleNamespace(device_kind="NVIDIA of tomorrow", platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda platform=None: [here])
    assert chosen_backend("append_kv")[0] == chosen_backend("append_kv", "cuda")[0] == with_triton
    monkeypatch.setattr(devices, "has_pallas_triton", lambda: False)
    assert chosen_backend("append_kv")[0] == without


def test_pallas_triton_is_looked_for():
    spec = importlib.util.find_spec("jax.experimental.pallas.triton")
    assert devices.has_pallas_triton() == (spec is not None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "TPU v5 lite"])
def test_what_the_suited_kernel_does_not_take_runs_on_the_reference_with_a_warning(kind):
    """Decided while tracing: a head_dim of 24 is no power of two and no multiple of 128."""

    def traced(head_dim):
        state = oracle.random_state(np.random.default_rng(0), [30, 7, 0], head_dim=head_dim, page_size=8)
        pools = state.k_pages, state.v_pages, state.summaries, state.page_table, state.lengths
        return str(jax.make_jaxpr(functools.partial(kernels.block_topk_decode, pages=4))(state.q, *pools))

    with target_device(kind):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "pallas_call" in traced(128)
        with pytest.warns(UserWarning, match="head_dim.* 24.*; falling back to the reference$") as warned:
            assert "pallas_call" not in traced(24)
    assert [str(warning.message).split(":")[0] for warning in warned] == ["select_pages", "paged_decode"]
    assert "pallas_call" not in traced(128)


def test_wgmma_is_refused_where_there_is_none():
    state = oracle.random_state(np.random.default_rng(0), [30], head_dim=64)
    call = state.q, state.k_pages, state.v_pages, state.page_table, state.lengths
    if jax.__version_info__ < (0, 11):
        pytest.skip("the mosaic_gpu kernels need jax 0.11")
    with target_device("NVIDIA A100-SXM4-80GB"), pytest.raises(NotImplementedError, match="takes Hopper GPUs"):
        kernels.paged_decode(*call, backend="mosaic_gpu")


@pytest.mark.slow
def test_a_forced_reference_is_the_default():
    state = oracle.random_state(np.random.default_rng(0), [30, 7, 0])
    pools = (state.k_pages, state.v_pages, state.summaries, state.page_table, state.lengths)
    for actual, expected in zip(
        kernels.block_topk_decode(state.q, *pools, pages=4, backend="xla"),
        kernels.block_topk_decode(state.q, *pools, pages=4),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


def test_backends_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"paged_decode: backend 'cuda' is not known \(known: xla, triton"):
        implementation("paged_decode", "cuda")
    absent = [name for name in BACKENDS[1:] if name not in kernel_backends("masked_decode")]
    assert absent == [*BACKENDS[1:]]
    with pytest.raises(
        NotImplementedError, match="masked_decode: no triton kernel is written; backends of this op: xla"
    ):
        implementation("masked_decode", "triton")


def write_table(folder, entries) -> None:
    """A tuning table of this device."""
    folder.mkdir(exist_ok=True)
    slug = tuning.device_slug(jax.devices()[0].device_kind)
    content = {"device": "this one", "entries": [tuning.entry_json(entry) for entry in entries]}
    (folder / f"{slug}.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_a_tuning_table_chooses_by_shape_and_gives_its_options(tmp_path, monkeypatch):
    """A table of this device sends one shape to an (interpreted) kernel, with its options, and the others nowhere."""
    state = oracle.random_state(np.random.default_rng(0), [30, 7, 0])
    pools = (state.k_pages, state.v_pages)
    key = tuning.decode_key(state.q, state.k_pages, state.page_table)
    entry = tuning.Entry("paged_decode", key, "triton", {"splits": 2, "interpret": True}, 1e-6)
    write_table(tmp_path, [entry])
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    forced = implementation("paged_decode", "triton")(state.q, *pools, state.page_table, state.lengths, **entry.options)
    chosen = kernels.paged_decode(state.q, *pools, state.page_table, state.lengths)
    reference_gives = reference.paged_decode(state.q, *pools, state.page_table, state.lengths)
    np.testing.assert_array_equal(chosen[1], forced[1])
    assert (np.asarray(chosen[0]) != np.asarray(reference_gives[0])).any()  # another order of sums
    other = dataclasses.replace(key, page_size=2 * key.page_size)
    assert implementation("paged_decode", None, other) is reference.paged_decode
    assert implementation("select_pages", None, key) is reference.select_pages
    far = oracle.random_state(np.random.default_rng(1), [30], group=32)  # more query heads than the kernel takes
    beyond = dataclasses.replace(entry, key=tuning.decode_key(far.q, far.k_pages, far.page_table))
    write_table(tmp_path / "far", [beyond])
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "far")
    call = far.q, far.k_pages, far.v_pages, far.page_table, far.lengths
    with pytest.warns(
        UserWarning, match="at most 16 query heads .* not 32.*to the reference: no tuning entry near this"
    ):
        given = kernels.paged_decode(*call)
    np.testing.assert_array_equal(given[0], reference.paged_decode(*call)[0])
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    gpu = devices.Device(jax.devices()[0].device_kind, "gpu", (9, 0))
    monkeypatch.setattr(devices, "target", lambda: gpu)
    measured = "triton", "the fastest on this one by shape, of those measured: triton at 1"
    assert chosen_backend("paged_decode") == chosen_backend("paged_decode", "cuda") == measured
    assert "not measured on this device" in chosen_backend("select_pages", "cuda")[1]
    assert "not measured on such a device" in chosen_backend("paged_decode", "tpu")[1]
    assert implementation("select_pages", None, key) is not reference.select_pages  # of no entry: the heuristic's


@pytest.mark.parametrize("name", [True, False])
def test_the_table_is_that_of_the_default_device(tmp_path, monkeypatch, name):
    """`jax.default_device`, as a name or a device, and not the first device of the process."""
    cpu = jax.devices("cpu")[0]
    key = tuning.decode_key(*(np.zeros(shape, np.float32) for shape in ((1, 2, 16), (2, 4, 8, 16), (1, 4))))
    write_table(tmp_path, [tuning.Entry("paged_decode", key, "triton", {}, 1e-6)])
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    monkeypatch.setattr(jax, "devices", lambda platform=None: [cpu] if platform == "cpu" else ["a gpu"])
    with jax.default_device("cpu" if name else cpu):
        assert implementation("paged_decode", None, key) is not reference.paged_decode
