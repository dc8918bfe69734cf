"""What a memory plan is refused for, and that it plans the shapes that the engine makes; tests/deviceless compiles."""

import dataclasses

import pytest

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.cli.doctor import doctor
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.memory import fits
from kinetics_jax.devices.memory_plan import memory_plan
from kinetics_jax.errors import UserError

CONTEXT = 32_768


@pytest.mark.parametrize(
    ("size", "device", "options", "told"),
    [
        ("8B", "h10", {}, "did you mean h100"),
        ("8B", "h100", {"chips": 3}, "one of 1, 2, 4, 8, got 3"),
        ("8B", "h100", {"batch": 0}, "--batch must be in 1"),
        ("8B", "h100", {"context": 1 << 20}, "exceeds the model's"),
        ("8B", "h100", {"dtype": "int8"}, "--dtype must be one of"),
        ("8B", "h100", {"attention": BlockTopK(budget=1024, dense_layers=(0, 99))}, "there is no layer 99"),
        ("32B", "v5e", {}, "does not fit; .* give --chips 8"),
        ("235B-A22B", "v5e", {"chips": 8}, "not even 8 chips do: shorten --context"),
        ("8B", "TPU-v5e", {"chips": 4, "batch": 64}, "8 fit; .* lower --batch to 8$"),
        (
            "Qwen2.5-7B-Instruct",
            "v5e",
            {"chips": 8},
            "--chips 8 does not divide the model's num_heads, 28; give 1, 2, 4$",
        ),
        ("Qwen2.5-7B-Instruct", "v5e", {"chips": 4, "batch": 500}, "lower --batch to [0-9]+$"),
    ],
)
def test_what_cannot_be_had_is_told_with_the_cure(size, device, options, told):
    with pytest.raises(UserError, match=told) as refused:
        memory_plan(ModelConfig.named(size), device, **{"context": CONTEXT} | options)
    assert "\n" not in str(refused.value)


def test_the_batch_that_is_advised_fits():
    with pytest.raises(UserError, match="lower --batch to 8"):
        memory_plan(ModelConfig.named("8B"), "v5e", chips=4, context=CONTEXT, batch=9 * 8)
    assert fits(ModelConfig.named("8B"), "tpu-v5e", tokens=CONTEXT, chips=4).sequences == 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "0.6B"}, "add --device"),
        ({"chips": 2}, "--chips is only for memory plans; add --model"),
        ({"model": "0.6B", "device": "h100", "page_size": 64}, "leave --page-size out"),
        ({"model": "0.7B", "device": "h100"}, "no published model named '0.7B'"),
    ],
)
def test_the_command_refuses(arguments, told):
    with pytest.raises(UserError, match=told):
        doctor(**arguments)


def test_pages_of_another_size_keep_the_budget():
    assert BlockTopK(budget=1024).with_page_size(64) == BlockTopK(budget=1024, page_size=64)
    assert LiteSysBlockTopK(pages=8).with_page_size(32) == LiteSysBlockTopK(pages=8, page_size=32)
    assert Dense().with_page_size(16) == Dense()
    with pytest.raises(UserError, match="not a multiple of page_size 48"):
        BlockTopK(budget=1024).with_page_size(48)


@pytest.mark.parametrize("tokens", [40, 64, 1000])
def test_the_shapes_are_the_engine_s(tokens, monkeypatch):
    from kinetics_jax.engine import capacity
    from kinetics_jax.engine.abstract import abstract_model
    from kinetics_jax.engine.engine import Engine, Request
    from kinetics_jax.padding import pool_pages
    from kinetics_jax.settings import EngineSettings, Sampling

    monkeypatch.setattr(capacity, "device_memory", lambda *_: None)
    config = dataclasses.replace(ModelConfig.named("0.6B"), num_layers=1, vocab_size=64, name="")
    engine = Engine(
        *abstract_model(config),
        config,
        policy=Dense(),
        sampling=Sampling(max_tokens=tokens - 10),
        settings=EngineSettings(slots=5),
    )
    job = engine.check([Request("a", (1,) * 10, (0,))])
    assert (job.table_width, job.num_pages) == pool_pages(tokens, Dense.page_size, 5)


@pytest.mark.parametrize(
    ("length", "page_size", "expected"),
    [(1, 16, (16, 16)), (17, 16, (32, 32)), (2048, 64, (2048, 2048)), (2049, 64, (2048, 4096)), (100, 48, (192, 192))],
)
def test_prompts_are_padded_as_the_engine_does(length, page_size, expected):
    from kinetics_jax.padding import prompt_shape

    assert prompt_shape(length, page_size) == expected
