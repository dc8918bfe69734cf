"""The files of a checkpoint: which hold weights, and which go along with them into another layout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from kinetics_jax.checkpoints.resolve import ORBAX_WEIGHTS
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import CheckpointError, shown
from kinetics_jax.files import atomic_directory, open_regular, read_json

MAX_LISTED = 12  # problems of one kind spelled out before "and n more"
ORBAX_FILES = "weights.json"
SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
SHARD = re.compile(r"^model-\d+-of-\d+\.safetensors$")
INDEX_BYTES, COMPANION_BYTES = 256 << 20, 512 << 20
# What goes along with the weights into another layout, byte for byte.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def refuse_adapter(directory: Path) -> None:
    """Raises CheckpointError for a directory that holds an adapter, alone or beside the weights that it changes."""
    if (directory / ADAPTER).exists():
        raise CheckpointError(
            f"{directory}: holds an adapter ({ADAPTER}), which is not applied; merge it into its base weights (peft's "
            f"merge_and_unload), or load a directory without it"
        )


def find_shards(directory: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files of a checkpoint, and what is wrong with them or with their index.

    A model.safetensors beside shards or beside an index that does not name it is refused: one of them is older. Warns
    of other files that are left out.
    """
    found = sorted(directory.glob("*.safetensors"))
    single = directory / SINGLE
    try:
        index = read_json(directory / INDEX, at_most=INDEX_BYTES, error=CheckpointError)
    except FileNotFoundError:
        index = None
    except CheckpointError as error:
        return [], [str(error)]
    if index is None:
        if not found:
            pickled = sorted(path for end in ("bin", "pt", "pth") for path in directory.glob(f"*.{end}"))
            hint = f"; {pickled[0].name} is a pickle, which is never read: convert it to safetensors" if pickled else ""
            return [], [f"no *.safetensors file{hint}"]
        if not single.exists():
            return found, []
        if shards := [path for path in found if SHARD.search(path.name)]:
            return [], [f"holds both {SINGLE} and shards ({shards[0].name}): remove those that are older"]
        _warn_of_strays(directory, found, [single])
        return [single], []
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in weight_map.values()
    ):
        return [], [f"{INDEX} is not a shard index (weight_map gives no file name for each tensor)"]
    named = [directory / name for name in sorted(set(weight_map.values()))]
    if single.exists() and single not in named:
        return [], [f"holds both {SINGLE} and {INDEX}, which names other files: remove the one that is older"]
    if older := [path for path in found if SHARD.search(path.name) and path not in named]:
        return [], [f"holds {shown(older[0].name)}, which {INDEX} does not name: remove the files that are older"]
    absent = [f"{shown(path.name)} is named by {INDEX} and missing" for path in named if not os.path.exists(path)]
    _warn_of_strays(directory, found, named)
    return [path for path in named if os.path.exists(path)], absent


def _warn_of_strays(directory: Path, found: list[Path], used: list[Path]) -> None:
    if strays := [shown(path.name) for path in found if path not in used]:
        warnings.warn(f"{directory}: not read: {', '.join(strays[:MAX_LISTED])}", stacklevel=4)


def list_orbax_files(directory: Path) -> None:
    """Records the size of every file below Orbax's folder: Orbax itself misses some files that are cut short."""
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in orbax_files(directory)}
    (directory / ORBAX_FILES).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def orbax_file_faults(directory: Path) -> list[str]:
    """What is missing of the files that were written, or has another size, as after an interrupted copy."""
    try:
        sizes = read_json(directory / ORBAX_FILES, at_most=INDEX_BYTES, error=CheckpointError)
    except FileNotFoundError:
        return [f"{ORBAX_FILES}, which is written last, is missing: this is not all of a checkpoint"]
    except CheckpointError as error:
        return [f"{ORBAX_FILES} is not a list of files ({error})"]
    absent = [name for name in sizes if not os.path.isfile(directory / name)]
    cut = [name for name in sizes if name not in absent and (directory / name).stat().st_size != sizes[name]]
    faults = fault_line("missing files", absent) + fault_line("files of another size than was written", cut)
    known = {str(directory / name) for name in sizes}
    return faults + fault_line(
        "files that were not written with it", [p.name for p in orbax_files(directory) if str(p) not in known]
    )


def orbax_files(directory: Path) -> list[Path]:
    """Orbax's own files in a checkpoint."""
    return sorted(path for path in (directory / ORBAX_WEIGHTS).rglob("*") if path.is_file())


def fault_line(label: str, names: list[str]) -> list[str]:
    """One line, in a list, that names the first of `names` after `label`; an empty list if there are none."""
    if not names:
        return []
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return [f"{label}: {', '.join(map(shown, names[:MAX_LISTED]))}{more}"]


def check_new(directory: Path) -> None:
    """Raises CheckpointError unless `directory` is absent, or an empty directory that can be replaced."""
    if directory.is_symlink() or directory.is_mount():
        raise CheckpointError(f"{directory}: is a link or a mount point; name a new directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: exists and is not empty; name a new directory")
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; name a new directory")


@contextlib.contextmanager
def new_checkpoint(directory: Path) -> Iterator[Path]:
    """A new directory to write a checkpoint to, which becomes `directory` at the end of the `with` (atomic_directory).

    Raises CheckpointError if `directory` exists and is not empty, or where it cannot be written: on a full disk, say.
    """
    check_new(directory)
    try:
        with atomic_directory(directory) as partial:
            yield partial
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written ({error.strerror or error})") from error


def write_companions(target: Path, source: Path | None, config: ModelConfig, dtypes: list[str]) -> None:
    """Writes configuration and tokenizer beside weights: the files of `source`, byte for byte.

    Only config.json's dtype becomes that of `config`. Without a config.json, one is made from `config`, its dtype the
    most common of `dtypes`.
    """
    for name in COMPANIONS:
        if source and os.path.isfile(source / name):
            given = open_regular(source / name, at_most=COMPANION_BYTES, error=CheckpointError)
            with given as file, open(target / name, "wb") as copy:
                shutil.copyfileobj(file, copy)
    path = target / "config.json"
    if not path.exists():
        most_common = max(dict.fromkeys(dtypes), key=dtypes.count)
        fields = dataclasses.replace(config, dtype=most_common).to_hf()
    elif ModelConfig.from_hf(path).dtype != config.dtype:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields |= dict.fromkeys({"dtype", "torch_dtype"} & fields.keys() or {"torch_dtype"}, config.dtype)
    else:
        return
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
