"""From what a user types as MODEL to a directory: a built-in name, a local directory, or a hub id. No jax."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from kinetics_jax.errors import UserError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
HUB_FILES = ["*.safetensors", "*.json"]


class CheckpointError(UserError):
    """A checkpoint that cannot be found or loaded; the message lists everything that is wrong with it."""


def builtin_models() -> list[str]:
    """Names of the checkpoints that come with the package, smallest first."""
    folders = [path.parent for path in ASSETS.glob("*/model.safetensors")]
    return [folder.name for folder in sorted(folders, key=lambda folder: (folder / "model.safetensors").stat().st_size)]


def resolve(name: str | Path) -> Path:
    """The directory of a checkpoint: a path that exists, a built-in name, or a hub id (`Qwen/Qwen3-8B`), which is
    downloaded through huggingface_hub, or taken from its cache. Raises CheckpointError saying what was tried.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name}: is a file; give the directory that holds config.json and *.safetensors")
    name = str(name)
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


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: not a local directory, not in the hub's cache, and the hub cannot be reached; "
            f"download it where there is a network and give its directory"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{name}: the hub refused: {str(error).splitlines()[0]}") from error
