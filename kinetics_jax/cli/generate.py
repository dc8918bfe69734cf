"""`kinetics generate`: samples of one prompt, to the terminal."""

from __future__ import annotations

import dataclasses
import json

from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.arguments import (
    DEFAULT_DRAW,
    MAX_SAMPLES,
    AttentionArg,
    BackendArg,
    CompileCacheArg,
    DrawArgs,
    DtypeArg,
    JsonArg,
    MeshArg,
    ModelArg,
    Positional,
    SpecialTokensArg,
    load_model,
)
from kinetics_jax.cli.checks import require_between
from kinetics_jax.cli.terminal import warm_up_report
from kinetics_jax.errors import escape_controls
from kinetics_jax.tasks.prompts import ChatTemplate

ON_REQUEST = ("agreement", "rounds")  # fields of a sample that this command does not ask for


def generate(
    model: Positional[ModelArg],
    *,
    prompt: str,
    chat: bool = False,
    special_tokens: SpecialTokensArg = True,
    n: int = 1,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    dtype: DtypeArg = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: JsonArg = False,
) -> None:
    """n samples of one prompt, to the terminal.

    Args:
        prompt: Text.
        chat: Wrap the text as a user's turn in the checkpoint's chat template.
        n: Number of samples.
        as_json: Print one JSON record per sample.
    """
    policy = parse_policy(attention)
    draw.check()
    require_between("--n", n, 1, MAX_SAMPLES)
    lm = load_model(model, dtype, backend, mesh, compile_cache)
    if chat:
        prompt = ChatTemplate(lm.directory, thinking=True).user_turn(prompt)
    add = special_tokens and not chat  # a chat template writes its own
    sampling, _ = draw.made(lm, [prompt], add_special_tokens=add)
    with warm_up_report() as on_chunk:
        samples = lm.generate(
            [prompt], n=n, sampling=sampling, attention=policy, add_special_tokens=add, on_chunk=on_chunk
        )
    for sample in samples:
        if as_json:
            fields = {name: value for name, value in dataclasses.asdict(sample).items() if name not in ON_REQUEST}
            print(json.dumps(fields, ensure_ascii=False))
        else:
            text = escape_controls(sample.text or "", keep="\n\t")  # a terminal does not obey what a model writes
            print(f"[{sample.sample}] {len(sample.output_tokens)} tokens, {sample.finish_reason}\n{text}\n")
