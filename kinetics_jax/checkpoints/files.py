"""The files of a checkpoint: which hold weights, and which go along with them into another layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from kinetics_jax.checkpoints.resolve import ORBAX_WEIGHTS, Checkpoint
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import CheckpointError

MAX_LISTED = 12  # problems of one kind spelled out before "and n more"
ORBAX_FILES = "weights.json"
INDEX = "model.safetensors.index.json"
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


def find_shards(directory: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files of a checkpoint, and what is wrong with its index."""
    index = directory / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            return [], [f"{INDEX} is not a shard index ({type(error).__name__}: {error})"]
        absent = [f"{name} is named by {INDEX} and missing" for name in names if not (directory / name).exists()]
        return [directory / name for name in names if (directory / name).exists()], absent
    single = directory / "model.safetensors"
    shards = [single] if single.exists() else sorted(directory.glob("*.safetensors"))
    if shards:
        return shards, []
    pickled = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt")) + sorted(directory.glob("*.pth"))
    hint = f"; {pickled[0].name} is a pickle, which is never read: convert it to safetensors" if pickled else ""
    return [], [f"no *.safetensors file{hint}"]


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hex digits that identify a checkpoint: BLAKE2b over each weight file's name, size, and slices of it.

    Of a large file, its first MiB (which holds a safetensors header) and 64 slices of 64 KiB spread over the rest are
    read. Saving the same weights to Orbax twice gives two fingerprints: Orbax names its files at random.
    """
    path = checkpoint.path
    if checkpoint.kind == "gguf":
        root, files = path.parent, [path]
    else:
        root, files = path, _orbax_files(path) if checkpoint.kind == "orbax" else find_shards(path)[0]
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def list_orbax_files(directory: Path) -> None:
    """Records the size of every file below Orbax's folder: Orbax itself misses some files that are cut short."""
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in _orbax_files(directory)}
    (directory / ORBAX_FILES).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def orbax_file_faults(directory: Path) -> list[str]:
    """What is missing of the files that were written, or has another size, as after an interrupted copy."""
    path = directory / ORBAX_FILES
    try:
        sizes = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return [f"{ORBAX_FILES}, which is written last, is missing: this is not all of a checkpoint"]
    except (ValueError, TypeError) as error:
        return [f"{ORBAX_FILES} is not a list of files ({error})"]
    absent = [name for name in sizes if not (directory / name).is_file()]
    cut = [name for name in sizes if name not in absent and (directory / name).stat().st_size != sizes[name]]
    return fault_line("missing files", absent) + fault_line("files of another size than was written", cut)


def _orbax_files(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / ORBAX_WEIGHTS).rglob("*") if path.is_file())


def fault_line(label: str, names: list[str]) -> list[str]:
    """One line, in a list, that names the first of `names` after `label`; an empty list if there are none."""
    if not names:
        return []
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return [f"{label}: {', '.join(names[:MAX_LISTED])}{more}"]


def check_new(directory: Path) -> None:
    """Raises CheckpointError unless `directory` is absent, or an empty directory that can be replaced."""
    if directory.is_symlink() or directory.is_mount():
        raise CheckpointError(f"{directory}: is a link or a mount point; name a new directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: exists and is not empty; name a new directory")
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; name a new directory")


def write_companions(target: Path, source: Path | None, config: ModelConfig, dtypes: list[str]) -> None:
    """Writes configuration and tokenizer beside weights: the files of `source`, byte for byte.

    Only config.json's dtype becomes that of `config`. Without a config.json, one is made from `config`, its dtype the
    most common of `dtypes`.
    """
    for name in COMPANIONS:
        if source and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
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
