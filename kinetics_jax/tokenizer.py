"""A checkpoint's tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_jax.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
CURE = f"name a {TOKENIZER}, or the directory that holds it"


def tokenizer_file(path: str | Path, *, cure: str = CURE) -> Path:
    """The file itself of `path`, a tokenizer.json or the directory that holds one.

    Raises CheckpointError, ending with `cure`, if there is none.
    """
    path = Path(path)
    path = path / TOKENIZER if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {cure}")
    return path


def read_tokenizer(path: str | Path, *, cure: str = CURE) -> Tokenizer:
    """Reads a tokenizer.json, or that of a directory. Raises CheckpointError if there is none, or if it is broken."""
    path = tokenizer_file(path, cure=cure)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer ({error})") from error
