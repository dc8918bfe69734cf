"""`kinetics convert`: Hugging Face or GGUF to Orbax, and Orbax to Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.cli.arguments import Positional
from kinetics_jax.cli.terminal import tensor_bar


def convert(
    source: Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]],
    target: Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]],
    *,
    to: Literal["hf", "orbax"] | None = None,
    dtype: str | None = None,
) -> None:
    """One checkpoint layout to another: Hugging Face or GGUF to Orbax, Orbax to Hugging Face.

    Args:
        source: Built-in name, Hugging Face or Orbax directory, GGUF file, or hub id.
        target: A new directory.
        to: Layout to write; default: the other one.
        dtype: float32, bfloat16 or float16; default: every weight keeps its own (quantised ones: float32).
    """
    resolve(source)  # refuses a wrong name before jax is imported
    from kinetics_jax.checkpoints.convert import convert as convert_checkpoint

    with tensor_bar(f"convert {source}") as on_tensor:
        written = convert_checkpoint(source, target, to=to, dtype=dtype, on_tensor=on_tensor)
    print(written)
