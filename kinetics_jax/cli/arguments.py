"""Flags that several commands share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.cli.terminal import tensor_bar
from kinetics_jax.errors import UserError
from kinetics_jax.settings import Sampling
from kinetics_jax.sharding.axes import mesh_sizes

if TYPE_CHECKING:
    from kinetics_jax.language_model import LanguageModel
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinetics_jax.config import ModelConfig


Positional = tyro.conf.Positional


MOST_SAMPLES = 10**6  # of a problem


ModelArg = Annotated[
    str, tyro.conf.arg(metavar="MODEL", help="Built-in name, Hugging Face or Orbax directory, GGUF file, or hub id.")
]


AttentionArg = Annotated[
    str, tyro.conf.arg(metavar="POLICY", help="dense, or block_topk:budget=1024,page_size=16 (see the README).")
]


BackendArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME",
        help="Forces the kernels' backend: xla, triton, mosaic_gpu, mosaic_tpu; by default as `kinetics doctor` says.",
    ),
]


CompileCacheArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="DIR|off",
        help="Where compiled programs are kept for the next process; by default as jax is set, else in the user's "
        "cache directory.",
    ),
]


MeshArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="AXES",
        help="Spreads the model over several devices: data=2,tensor=4, with expert=… for a mixture of experts.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Draw:
    """How tokens are drawn: the flags of every command that samples."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the most likely tokens that together weigh this much."""
    top_k: int = 0
    """Keep this many tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely, relative to the likeliest."""
    max_tokens: int | None = None
    """Most tokens of a sample; by default 1024, or as many as the model has positions for."""
    seed: int = 0
    """Another seed draws other samples."""
    repetition_window: int = 0
    """End a sample when its last so many tokens repeat, at least thrice over; 0 never does."""

    def check(self) -> None:
        """Refuses impossible values before a model is loaded."""
        Sampling(**{name: value for name, value in dataclasses.asdict(self).items() if value is not None})

    def sampling(self, lm: LanguageModel, prompts: list[str]) -> Sampling:
        """The sampling asked for, by default with as many tokens as fit behind the longest prompt."""
        given = dataclasses.asdict(self)
        if self.max_tokens is None:
            longest = max(len(lm.encode(prompt)) for prompt in prompts)
            room = max(1, lm.config.max_position_embeddings - longest)
            given["max_tokens"] = min(Sampling.max_tokens, room)
        return Sampling(**given)


DrawArgs = tyro.conf.OmitArgPrefixes[Draw]


DEFAULT_DRAW = Draw()


def _at_least_one(name: str, value: int) -> None:
    if not 1 <= value <= MOST_SAMPLES:
        raise UserError(f"--{name} must be at least 1 and at most {MOST_SAMPLES}, got {value}")


def _load(
    model: str, dtype: str | None, backend: str | None, mesh: str | None, compile_cache: str | None
) -> LanguageModel:
    """Loads a checkpoint with a progress bar, the compilation cache turned on."""
    if mesh is not None:
        mesh_sizes(mesh)
    resolve(model)  # a wrong mesh or name is told before jax is imported
    from kinetics_jax.compile_cache import use_compile_cache
    from kinetics_jax.language_model import load

    use_compile_cache(compile_cache)
    with tensor_bar(f"load {model}") as on_tensor:
        return load(model, dtype=dtype, backend=backend, mesh=mesh, on_tensor=on_tensor)


def config_of(model: str) -> ModelConfig:
    """A configuration by published or built-in name, or from a config.json or the directory that holds one."""
    from kinetics_jax.assets import ASSETS, builtin_models
    from kinetics_jax.config import ConfigError, ModelConfig

    path = ASSETS / model if model in builtin_models() else Path(model)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        return ModelConfig.from_hf(path, name=folder.resolve().name)
    try:
        return ModelConfig.named(model)
    except ConfigError as error:
        raise UserError(f"{error}; nor is it a config.json, its directory, or a built-in model") from error
