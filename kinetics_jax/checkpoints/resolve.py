"""From what a user types as MODEL to where it lies: a built-in name, a directory or GGUF file, or a hub id. No jax."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal

from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.errors import UserError
from kinetics_jax.hub import hub_failure

ORBAX_WEIGHTS = "weights"  # the folder of Orbax's own files, beside config.json
GGUF = ".gguf"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]


class CheckpointError(UserError):
    """A checkpoint that cannot be found or loaded; the message lists everything that is wrong with it."""


def resolve(name: str | Path) -> Path:
    """Where a checkpoint lies: a directory or GGUF file that exists, or the directory of a built-in name or a hub id
    (`Qwen/Qwen3-8B`), which is downloaded through huggingface_hub, or taken from its cache. Raises CheckpointError
    saying what was tried.
    """
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix == GGUF):
        return path
    if path.exists():
        raise CheckpointError(
            f"{name}: is a file, and not a {GGUF}; give the directory that holds config.json and *.safetensors"
        )
    name = str(name)
    if name.endswith(GGUF):
        raise CheckpointError(f"{name}: no such file")
    known = builtin_models()
    if name in known:
        return ASSETS / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _from_hub(name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CheckpointError(
        f"{name}: no such directory, nor a built-in model ({', '.join(known)}), nor a hub id like Qwen/Qwen3-8B{hint}"
    )


def checkpoint_kind(directory: Path) -> Literal["hf", "orbax", "gguf"]:
    """How a checkpoint keeps its weights. Raises CheckpointError if a directory is no checkpoint of any kind."""
    if directory.is_file():
        return "gguf"
    if any(directory.glob("*.safetensors")):
        return "hf"
    if (directory / ORBAX_WEIGHTS).is_dir():
        return "orbax"
    if (directory / "config.json").exists():
        return "hf"  # its reader says which weights are missing
    if files := sorted(directory.glob(f"*{GGUF}")):
        raise CheckpointError(f"{directory}: a GGUF checkpoint is loaded by its file: {files[0]}")
    if any(directory.glob("*_METADATA")):
        raise CheckpointError(
            f"{directory}: bare Orbax arrays; a checkpoint has them in {ORBAX_WEIGHTS}/, with config.json beside it"
        )
    raise CheckpointError(
        f"{directory}: not a checkpoint; one holds config.json and either *.safetensors or Orbax's {ORBAX_WEIGHTS}/"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's, its HTTP client's and the disk's errors have no other parent
        raise CheckpointError(hub_failure(name, error)) from error
    if not any(snapshot.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: {snapshot} holds no *.safetensors: the hub has none of it, or its download was interrupted "
            f"(with a network, the same command resumes it)"
        )
    return snapshot
