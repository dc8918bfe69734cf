"""Flags that several commands share, and what they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.cli.checks import require, require_devices
from kinetics_jax.cli.terminal import say, tensor_bar
from kinetics_jax.costs.batching import MAX_BATCH
from kinetics_jax.costs.widths import TYPE_BYTES
from kinetics_jax.errors import UserError, shown
from kinetics_jax.settings import Sampling
from kinetics_jax.sharding.axes import mesh_sizes

if TYPE_CHECKING:
    from kinetics_jax.config import ModelConfig
    from kinetics_jax.costs.architectures.architecture import PricedModel
    from kinetics_jax.language_model import LanguageModel

MAX_SAMPLES = 10**6  # of a problem
DRAWN = ("temperature", "top_p", "top_k", "min_p")  # what --sampling chooses, and a flag each
Base = Literal["recommended", "plain", "greedy"]
Positional = tyro.conf.Positional
JsonArg = Annotated[bool, tyro.conf.arg(name="json")]

ModelArg = Annotated[
    str, tyro.conf.arg(metavar="MODEL", help="Built-in name, Hugging Face or Orbax directory, GGUF file, or hub id.")
]

POLICY_HELP = "dense, or block_topk:budget=1024,page_size=16 (see the documentation of attention policies)."
AttentionArg = Annotated[str, tyro.conf.arg(metavar="POLICY", help=POLICY_HELP)]

BackendArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME|OP=NAME,…",
        help="Kernel backend: xla, triton, mosaic_gpu, mosaic_tpu or one of another package, for all ops or for each, "
        "as append_kv=xla,paged_decode=triton; by default as `kinetics doctor` says.",
    ),
]

CompileCacheArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="DIR|off",
        help="Where compiled programs are kept for the next process; default: as jax is configured, else the user's "
        "cache directory.",
    ),
]

SpecialTokensArg = Annotated[
    bool,
    tyro.conf.arg(
        help="Whether a prompt that is no chat gets what the tokenizer adds by itself (often a first token)."
    ),
]

DtypeArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="TYPE", help="float32, bfloat16 or float16; default: bfloat16 on accelerators, float32 on CPU."
    ),
]

MeshArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="AXES",
        help="Split the model over several devices: data=2,tensor=4, with expert=… for a mixture of experts.",
    ),
]


Dtype = Literal["bfloat16", "float16", "float32", "float8", "int8"]

KvDtypeArg = Annotated[Dtype | None, tyro.conf.arg(help="Type of the KV cache; default: the type of the runs.")]
WeightDtypeArg = Annotated[Dtype | None, tyro.conf.arg(help="Type of the weights; default: the type of the runs.")]


@dataclasses.dataclass(frozen=True)
class Draw:
    """How tokens are drawn: flags of the commands that sample."""

    sampling: Annotated[Base | None, tyro.conf.arg(metavar="NAME")] = None
    """What the four flags below are where they are not given: recommended (by the checkpoint; the default where it
    recommends something), plain (the model's own probabilities; else the default) or greedy."""
    temperature: float | None = None
    """0 is greedy; plain: 1."""
    top_p: float | None = None
    """Nucleus: keep the most likely tokens that together have this probability; plain: 1."""
    top_k: int | None = None
    """Keep this many tokens; plain: 0, which keeps all."""
    min_p: float | None = None
    """Keep tokens at least this likely, relative to the likeliest; plain: 0."""
    max_tokens: int | None = None
    """Tokens of a sample at most; default: 1024, or as many as the model has positions for."""
    seed: int = 0
    """Another seed draws other samples."""
    repetition_window: int = 0
    """Stop a sample once its last N tokens repeat at least three times; 0 never stops."""
    known_ids_only: bool = False
    """Draw no id that the tokenizer has no token for, as padded vocabularies have."""

    def check(self) -> None:
        """Raises SamplingError for impossible values, before a model is loaded."""
        Sampling(**self._given())
        require(
            self.sampling != "greedy" or not self.temperature,
            f"--sampling greedy draws at temperature 0, --temperature says {self.temperature}; leave one of them out",
        )

    def _given(self) -> dict[str, Any]:
        """The settings that flags give."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        given.pop("sampling", None)
        return given

    def made(
        self,
        lm: LanguageModel,
        prompts: list[str],
        *,
        add_special_tokens: bool,
        begun: Mapping[str, Any] | None = None,
    ) -> tuple[Sampling, dict[str, Any] | None]:
        """The sampling that the flags ask for, by default with as many tokens as fit behind the longest prompt; and
        what run.json says of the checkpoint's recommendation, None where it is not used. A line says where settings are
        not the plain ones: from the recommendation, or from the run in the folder, `begun`, which goes on as it began.
        """
        given = self._given()
        base, recommended = self._base(lm, begun)
        given = base | given
        if self.max_tokens is None:
            longest = max(len(lm.encode(prompt, add_special_tokens=add_special_tokens)) for prompt in prompts)
            positions_left = max(1, lm.config.max_position_embeddings - longest)
            given["max_tokens"] = min(Sampling.max_tokens, positions_left)
        return Sampling(**given), recommended

    def _base(self, lm: LanguageModel, begun: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the flags that are not given stand for, and the recommendation that is used."""
        if self.sampling == "greedy":
            return {"temperature": 0.0}, None
        if self.sampling == "plain":
            return {}, None
        stored = None if self.sampling or begun is None else begun.get("sampling")
        if isinstance(stored, dict) and begun is not None and (begun.get("recommended") or lm.recommended):
            kept = {name: stored[name] for name in DRAWN if name in stored}
            said = ", ".join(f"{name} {value}" for name, value in kept.items())
            say(f"{lm.config.name}: sampled as the run in the folder began ({said}), but for flags that are given")
            return kept, begun.get("recommended")
        if lm.recommended is None:
            require(
                self.sampling is None,
                f"{lm.config.name}: recommends no sampling (no generation_config.json says anything of it); take "
                "--sampling plain",
            )
            return {}, None
        over = [f"--{name.replace('_', '-')}" for name in DRAWN if getattr(self, name) is not None]
        but = f", but for {', '.join(over)}" if over else ""
        say(f"{lm.config.name}: sampled as it recommends ({lm.recommended.words}){but}; --sampling plain: otherwise")
        return dict(lm.recommended.settings), lm.recommended.identity


DrawArgs = tyro.conf.OmitArgPrefixes[Draw]
DEFAULT_DRAW = Draw()


def load_model(
    model: str, dtype: str | None, backend: str | None, mesh: str | None, compile_cache: str | None
) -> LanguageModel:
    """Loads a checkpoint with a progress bar, the compilation cache turned on.

    Raises CheckpointError for a name that is no checkpoint and MeshError for wrong axes, both before jax is imported.
    """
    if mesh is not None:
        mesh_sizes(mesh)
    resolve(model)
    from kinetics_jax.compile_cache import use_compile_cache
    from kinetics_jax.language_model import load

    require_devices()
    use_compile_cache(compile_cache)
    with tensor_bar(f"load {model}") as on_tensor:
        return load(model, dtype=dtype, backend=backend, mesh=mesh, on_tensor=on_tensor)


def batch_of(given: str | int) -> int | Literal["fit"] | None:
    """What --batch says: `fit`, `none` or a number. Raises UserError for anything else."""
    text = str(given)
    if text == "fit":
        return "fit"
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_BATCH):
        raise UserError(f"--batch must be fit, none, or a number in 1 … {MAX_BATCH}, got {shown(text)}")
    return int(text)


def bytes_of(dtype: Dtype | None) -> float | None:
    """Bytes of an element, None where no type was given."""
    return None if dtype is None else TYPE_BYTES[dtype]


def priced_model(model: str) -> PricedModel:
    """What `config_of` reads, or an architecture that is priced and not run, by its published name or config.json."""
    from kinetics_jax.assets import builtin_models
    from kinetics_jax.costs.architectures.published import architecture_named, published_names
    from kinetics_jax.costs.architectures.readers import read_priced

    path = Path(model)
    if model in builtin_models() or not path.exists():
        return architecture_named(model) if model in published_names() else config_of(model)
    return read_priced(path, name=_named_after(path))


def _named_after(path: Path) -> str:
    """`Qwen3-8B` of configs/Qwen3-8B.json, of Qwen3-8B/config.json and of the directory."""
    whole = path.resolve()
    return (whole if whole.is_dir() else whole.parent if whole.name == "config.json" else whole.with_suffix("")).name


def config_of(model: str) -> ModelConfig:
    """The configuration of a published or built-in name, a config.json, or the directory that holds one.

    Raises UserError for another name, ConfigError for a file that cannot be read.
    """
    from kinetics_jax.assets import builtin_folders
    from kinetics_jax.config import ConfigError, ModelConfig

    path = builtin_folders().get(model, Path(model))
    if path.exists():
        return ModelConfig.from_hf(path, name=_named_after(path))
    try:
        return ModelConfig.named(model)
    except ConfigError as error:
        raise UserError(f"{error}; nor is it a config.json, its directory, or a built-in model") from error
