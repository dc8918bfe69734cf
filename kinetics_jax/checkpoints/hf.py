"""Hugging Face checkpoints: config.json and one or many safetensors shards, streamed tensor by tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from kinetics_jax.checkpoints.resolve import CheckpointError
from kinetics_jax.config import ConfigError, ModelConfig, end_tokens
from kinetics_jax.models.qwen3 import Qwen3

INDEX = "model.safetensors.index.json"
FLOAT_DTYPES = ("F32", "BF16", "F16", "F64")
SLICE_BYTES = 16 << 20  # read, checked and cast at a time
ALIGNMENT = 64  # bytes; jax adopts an aligned host buffer on the CPU instead of copying it
LISTED = 12  # problems of one kind spelled out before "and n more"


def read_config(directory: Path, *, name: str = "") -> ModelConfig:
    """config.json, with the end tokens of generation_config.json where there is one (Qwen3 names two there).

    The model goes by `name`, or by the directory's own.
    """
    config = ModelConfig.from_hf(directory, name=name or directory.resolve().name)
    path = directory / "generation_config.json"
    if path.exists():
        try:
            eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path}: not a JSON object ({error})") from error
        both = (*config.eos_token_ids, *end_tokens(eos, str(path)))
        config = dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(both)))
    return config


def load_hf(
    directory: str | Path,
    config: ModelConfig,
    *,
    dtype: DTypeLike,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads a directory's safetensors into Qwen3's parameters, cast to `dtype`: `nnx.split` of the loaded model.

    Beside the weights themselves the host holds one tensor's file pages and one slice at a time. `on_tensor(done,
    total)` is called after each tensor. Raises CheckpointError naming every missing, extra, misshapen, non-finite or
    truncated tensor at once.
    """
    directory = Path(directory)
    abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    wanted = {".".join(map(str, path)): (path, leaf.shape) for path, leaf in nnx.to_flat_state(state)}
    shards, problems = _find_shards(directory)

    found: dict[str, tuple[Path, str]] = {}  # our name → (file, name in it)
    headers_complete = not problems
    for shard in shards:
        try:
            with safe_open(shard, framework="np") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            problems.append(f"{shard.name} is truncated or not safetensors ({error})")
            headers_complete = False
            continue
        for name in names:
            ours = name.removeprefix("model.")
            if ours in found:
                problems.append(f"{ours} is in both {found[ours][0].name} and {shard.name}")
            found[ours] = (shard, name)
    if headers_complete:  # an unreadable shard would make all its tensors look missing
        problems += _listed("missing", [name for name in wanted if name not in found])
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    extra = [name for name in found if name not in wanted and name not in ignored and "rotary_emb" not in name]
    problems += _listed("not part of this model", extra)

    loaded: list[tuple[tuple, nnx.Param]] = []
    misfits: list[str] = []
    for done, (name, (path, shape)) in enumerate(wanted.items(), start=1):
        if name in found:
            tensor, fault = _read(*found[name], shape, np.dtype(dtype))
            misfits += [f"{name} {fault}"] if fault else []
            if tensor is not None and not problems and not misfits:
                loaded.append((path, nnx.Param(jax.device_put(tensor))))
        on_tensor(done, len(wanted))
    problems += misfits[:LISTED] + ([f"and {len(misfits) - LISTED} more"] if len(misfits) > LISTED else [])
    if problems:
        raise CheckpointError(f"{directory}: cannot load this checkpoint\n  " + "\n  ".join(problems))
    return graph, nnx.from_flat_state(loaded)


def fingerprint(directory: Path) -> str:
    """32 hex digits that tell checkpoints apart: BLAKE2b over each safetensors file's name, size, and slices of it.

    Of a large file, its first MiB (which holds the header) and 64 slices of 64 KiB spread over the rest are read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for shard in _find_shards(directory)[0]:
        size = shard.stat().st_size
        digest.update(f"{shard.name} {size}\n".encode())
        with open(shard, "rb") as file:
            digest.update(file.read(1 << 20))
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def _find_shards(directory: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files of a checkpoint, and what is wrong with their listing."""
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


def _read(shard: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray | None, str]:
    """One tensor cast to `dtype`, and what is wrong with it ("" if nothing).

    The file is opened anew for each tensor, so that its mapped pages leave memory with it.
    """
    with safe_open(shard, framework="np") as file:
        source = file.get_slice(name)
        stored = tuple(source.get_shape())
        if stored != tuple(shape):
            return None, f"has shape {list(stored)}, expected {list(shape)}"
        if source.get_dtype() not in FLOAT_DTYPES:
            return None, f"is stored as {source.get_dtype()}, expected one of {', '.join(FLOAT_DTYPES)}"
        tensor = _aligned(shape, dtype)
        row_bytes = max(1, int(np.prod(shape[1:])) * 8)
        rows = max(1, SLICE_BYTES // row_bytes)
        bad = 0
        for start in range(0, shape[0], rows):
            end = min(start + rows, shape[0])
            with np.errstate(over="ignore"):  # an overflow shows as an infinity
                tensor[start:end] = source[start:end]
            part = tensor[start:end]
            bad += part.size - int(np.count_nonzero(np.isfinite(part)))
    return (None, f"holds {bad} values that are NaN or infinite in {dtype.name}") if bad else (tensor, "")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def _listed(label: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"{label}: {', '.join(names[:LISTED])}{more}"]
