"""A checkpoint's tokenizer.json."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import open_regular, read_json, read_regular

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
REFUSED = "tokenizer.refused"  # in its place: why a GGUF file's tokenizer could not be made
SETTINGS = "tokenizer_config.json"
ADDED = ("add_bos_token", "add_eos_token")
TOKENIZER_BYTES, SETTINGS_BYTES = 512 << 20, 64 << 20
CURE = f"name a {TOKENIZER}, or the directory that holds it"


def tokenizer_file(path: str | Path, *, cure: str = CURE) -> Path:
    """The file itself of `path`, a tokenizer.json or the directory that holds one.

    Raises CheckpointError, ending with `cure`, if there is none.
    """
    path = Path(path)
    path = path / TOKENIZER if path.is_dir() else path
    if os.path.exists(refused := path.with_name(REFUSED)):
        raise CheckpointError(f"{refused.read_text(encoding='utf-8')}; {cure}")
    try:
        open_regular(path, at_most=TOKENIZER_BYTES, error=CheckpointError).close()
    except FileNotFoundError as error:
        raise CheckpointError(f"{shown(str(path), 400)}: no such file; {cure}") from error
    return path


def read_tokenizer(path: str | Path, *, cure: str = CURE) -> Tokenizer:
    """Reads a tokenizer.json, or that of a directory, without the truncation and padding that it may ask for.

    What it adds before and after a text is what its post-processor says, as in transformers; a warning tells where
    `add_bos_token` or `add_eos_token` of the tokenizer_config.json beside it says something else. Raises
    CheckpointError if there is no tokenizer, or if it is broken.
    """
    path = tokenizer_file(path, cure=cure)
    from tokenizers import Tokenizer

    data = read_regular(path, at_most=TOKENIZER_BYTES, error=CheckpointError)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer ({shown(str(error), 200)})") from error
    # What a trainer left in the file would cut every prompt, or fill it up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    settings, added = read_settings(path.parent), added_tokens(tokenizer)
    for name, ids in zip(ADDED, added, strict=True):
        if (asked := settings.get(name)) is not None and asked != bool(ids):
            warnings.warn(
                f"{path.parent}: {SETTINGS} says {name}: {str(asked).lower()}, and {TOKENIZER} adds {ids or 'none'}, "
                f"which counts (as in transformers)",
                stacklevel=2,
            )
    return tokenizer


def read_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json of a directory; {} where there is none. Raises CheckpointError if it is broken."""
    path = directory / SETTINGS
    try:
        settings = read_json(path, at_most=SETTINGS_BYTES, error=CheckpointError)
    except FileNotFoundError:
        return {}
    for name in ADDED:
        if not isinstance(settings.get(name), bool | None):
            raise CheckpointError(f"{path}: {name} must be true or false, got {spelled(settings[name])}")
    return settings


def named_token(settings: dict[str, Any], name: str) -> str | None:
    """The text of `bos_token` or `eos_token`, which may be an object; None where there is none."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def added_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text by itself."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    begin = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return whole[:begin], whole[begin + len(plain) :]
