"""The engine on a forced backend: the same samples, and one line for what a backend cannot do."""

import functools
import importlib

import pytest
from tiny import tiny_config, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.config import ConfigError
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.settings import EngineSettings, RequestError

GREEDY = kj.Sampling(temperature=0.0, max_tokens=12)
REQUESTS = [Request("a", list(range(5, 26)), range(2)), Request("b", [7, 9, 4], range(1))]


def outputs(lm, backend, policy) -> dict:
    engine = Engine(
        lm.graph,
        lm.weights,
        lm.config,
        policy=policy,
        sampling=GREEDY,
        settings=EngineSettings(slots=2, chunk=6),
        backend=backend,
    )
    return {(done.problem, done.sample): done.output_tokens for done in engine.run(REQUESTS)}


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.Dense(), kj.BlockTopK(pages=4, page_size=4, dense_layers=(0,))], ids=str)
def test_interpreted_kernels_draw_what_the_reference_draws(tmp_path, monkeypatch, policy):
    lm = kj.load(write_checkpoint(tmp_path, tiny_config(head_dim=16)))
    for op in ("append_kv", "select_pages", "paged_decode"):
        module = importlib.import_module(f"kinetics_kernels.ops.{op}.triton")
        monkeypatch.setattr(module, op, functools.partial(getattr(module, op), interpret=True))
    assert outputs(lm, "triton", policy) == outputs(lm, None, policy)


def test_what_a_backend_cannot_do_is_refused_before_anything_runs(tmp_path):
    lm = kj.load(write_checkpoint(tmp_path, tiny_config(head_dim=8)))
    with pytest.raises(RequestError, match="the triton backend takes a head_dim that is a power of two"):
        outputs(lm, "triton", kj.Dense())


def test_a_backend_of_another_device_is_not_loaded(tmp_path):
    with pytest.raises(ConfigError, match="backend 'mosaic_tpu' does not run on a cpu; there: xla"):
        kj.load(write_checkpoint(tmp_path, tiny_config()), backend="mosaic_tpu")
    with pytest.raises(ConfigError, match="paged_decode: backend 'triton' does not run on a cpu; there: xla"):
        kj.load(tmp_path, backend="append_kv=xla,paged_decode=triton")
    with pytest.raises(ConfigError, match="grouped_matmul cannot be chosen here"):
        kj.load(tmp_path, backend="grouped_matmul=xla")
    assert kj.load(tmp_path, backend="xla").backend == "xla"
    assert kj.load(tmp_path, backend="append_kv=xla,paged_decode=xla").backend == "append_kv=xla,paged_decode=xla"
