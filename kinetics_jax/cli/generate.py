"""`kinetics generate`: samples of one prompt, to the terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import tyro

from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.terminal import warm_up_report
from kinetics_jax.tasks.prompts import ChatTemplate

if TYPE_CHECKING:
    pass
from kinetics_jax.cli.arguments import (
    DEFAULT_DRAW,
    AttentionArg,
    BackendArg,
    CompileCacheArg,
    DrawArgs,
    MeshArg,
    ModelArg,
    Positional,
    _at_least_one,
    _load,
)


def generate(
    model: Positional[ModelArg],
    *,
    prompt: str,
    chat: bool = False,
    n: int = 1,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    dtype: str | None = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """n samples of one prompt, to the terminal.

    Args:
        prompt: Text, tokenised as it stands.
        chat: Put the text as a user's turn in the checkpoint's chat template.
        n: Number of samples.
        dtype: float32, bfloat16 or float16; by default what the device likes.
        as_json: One JSON record a sample.
    """
    policy = parse_policy(attention)
    draw.check()
    _at_least_one("n", n)
    lm = _load(model, dtype, backend, mesh, compile_cache)
    if chat:
        prompt = ChatTemplate(lm.directory, thinking=True).user_turn(prompt)
    sampling = draw.sampling(lm, [prompt])
    with warm_up_report() as on_chunk:
        samples = lm.generate([prompt], n=n, sampling=sampling, attention=policy, on_chunk=on_chunk)
    for drawn in samples:
        if as_json:
            print(json.dumps(dataclasses.asdict(drawn), ensure_ascii=False))
        else:
            print(f"[{drawn.sample}] {len(drawn.output_tokens)} tokens, {drawn.finish_reason}\n{drawn.text}\n")
