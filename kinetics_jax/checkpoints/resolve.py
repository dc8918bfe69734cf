"""From what a user types as MODEL to a checkpoint: a built-in name, a directory or GGUF file, or a hub id."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from pathlib import Path
from typing import Literal

from kinetics_jax.assets import builtin_folders
from kinetics_jax.errors import CheckpointError, shown
from kinetics_jax.hub import HubError, download

ORBAX_WEIGHTS = "weights"  # the folder of Orbax's own files, beside config.json
GGUF = ".gguf"
MAX_PARTS = 1000
PART = re.compile(r"^(.+)-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE | re.DOTALL)
Kind = Literal["hf", "orbax", "gguf"]
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory, or a GGUF file; `kind` is how it keeps its weights, `name` what its model is called."""

    path: Path
    kind: Kind
    name: str


def resolve(name: str | Path) -> Checkpoint:
    """The checkpoint at an existing path, of a built-in name, or of a hub id (`Qwen/Qwen3-8B`).

    That of a hub id is downloaded through huggingface_hub, or taken from its cache. A path gives the model its own
    name. Raises CheckpointError saying what was tried, or why it is no checkpoint.
    """
    path, typed = Path(name), shown(str(name), 200)
    if os.path.isdir(path):
        return Checkpoint(path, checkpoint_kind(path), path.resolve().name)
    if os.path.exists(path) and path.suffix.lower() == GGUF:
        first = gguf_parts(path)[0]
        return Checkpoint(first if os.path.exists(first) else path, "gguf", gguf_name(path))
    if os.path.exists(path):
        raise CheckpointError(
            f"{typed}: is a file, and not a {GGUF}; give the directory that holds config.json and *.safetensors"
        )
    name = str(name)
    if name.lower().endswith(GGUF):
        raise CheckpointError(f"{typed}: no such file")
    known = builtin_folders()
    if name in known:
        return Checkpoint(known[name], checkpoint_kind(known[name]), name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        snapshot = _from_hub(name)  # named after a revision, which is no name for a model
        return Checkpoint(snapshot, checkpoint_kind(snapshot), name)
    near = difflib.get_close_matches(name[:200], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CheckpointError(
        f"{typed}: no such directory, nor a built-in model ({', '.join(known)}), nor a hub id like Qwen/Qwen3-8B{hint}"
    )


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF model by the name of one: all its parts in order, or the file itself."""
    match = PART.match(path.name)
    if not match or not 1 <= int(match[3]) <= MAX_PARTS:
        return [path]
    return [path.with_name(f"{match[1]}-{part:05d}-of-{match[3]}{match[4]}") for part in range(1, int(match[3]) + 1)]


def gguf_name(path: Path) -> str:
    """What the model in a GGUF file is called: the file's name without its ending and the number of its part."""
    match = PART.match(path.name)
    return match[1] if match else path.stem


def checkpoint_kind(directory: Path) -> Literal["hf", "orbax"]:
    """How a directory keeps its weights. Raises CheckpointError if it is no checkpoint of any kind."""
    orbax = (directory / ORBAX_WEIGHTS).is_dir()
    if any(directory.glob("*.safetensors")):
        if orbax:
            raise CheckpointError(
                f"{directory}: holds both *.safetensors and Orbax's {ORBAX_WEIGHTS}/; move one of them elsewhere"
            )
        return "hf"
    if orbax:
        return "orbax"
    if (directory / "config.json").exists():
        return "hf"  # its reader says which weights are missing
    if files := sorted(file for file in directory.iterdir() if file.suffix.lower() == GGUF):
        raise CheckpointError(f"{directory}: a GGUF checkpoint is loaded by its file: {files[0]}")
    if any(directory.glob("*_METADATA")):
        raise CheckpointError(
            f"{directory}: bare Orbax arrays; a checkpoint has them in {ORBAX_WEIGHTS}/, with config.json beside it"
        )
    raise CheckpointError(
        f"{directory}: not a checkpoint; one holds config.json and either *.safetensors or Orbax's {ORBAX_WEIGHTS}/"
    )


def _from_hub(name: str) -> Path:
    try:
        snapshot = download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
    except HubError as error:
        raise CheckpointError(str(error)) from error
    if not any(snapshot.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: {snapshot} holds no *.safetensors: the hub has none of it, or its download was interrupted "
            f"(with a network, the same command resumes it)"
        )
    return snapshot
