"""Samples of any format as RunData: run folders, plain tables (tables.py), the paper's own JSONL (paper_traces.py)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.analysis import paper_traces
from kinetics_jax.analysis.samples import RunData, SamplesError, reconcile, run_data
from kinetics_jax.analysis.tables import ENDINGS, MAX_COUNT, is_results, published_config, read_rows, read_table
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.runs.folder import read_run

Configs = ModelConfig | Mapping[str, ModelConfig]


def read_samples(
    path: str | Path,
    *,
    model: str | None = None,
    attention: AttentionPolicy | str | None = None,
    config: Configs | None = None,
    tokenizer: Any = None,
    prompt_tokens: int | None = None,
) -> RunData:
    """The samples at `path`, which hold one configuration; see `read_all`. Raises SamplesError for several."""
    runs = read_all(
        [path], model=model, attention=attention, config=config, tokenizer=tokenizer, prompt_tokens=prompt_tokens
    )
    names = sorted({f"{run.model} {run.attention}" for run in runs})
    if len(runs) > 1:
        raise SamplesError(f"{path}: holds {len(runs)} runs ({names[0]}, …), one is expected; read_all reads them all")
    return runs[0]


def read_all(
    paths: Iterable[str | Path],
    *,
    model: str | None = None,
    attention: AttentionPolicy | str | None = None,
    config: Configs | None = None,
    tokenizer: Any = None,
    prompt_tokens: int | None = None,
) -> list[RunData]:
    """The samples of several sources, a RunData for every configuration of each; `samples.pooled` makes them one.

    A source is a run folder (or its samples.jsonl), a file (.csv, .jsonl or .parquet), or a directory of those; tables
    of results that this package wrote into a directory are passed over with a warning. `model`, `attention` (a policy
    or its spelling) and `prompt_tokens` are for files that do not say; where one does say, they must not contradict it.
    A table that names no attention is dense. The architecture of a published model is known by its name; that of
    another is None unless `config` gives it: of the one model that is not known, or by name. `tokenizer` counts the
    tokens of the paper's own files: a tokenizers.Tokenizer, the path of a tokenizer.json, or of the directory that
    holds one; without it their token counts are missing. Raises SamplesError naming file and line, TraceError for a
    broken run folder.
    """
    policy = parse_policy(attention) if isinstance(attention, str) else attention
    if prompt_tokens is not None and not 1 <= prompt_tokens <= MAX_COUNT:
        raise SamplesError(f"prompts of {prompt_tokens} tokens cannot be: 1 … {MAX_COUNT}")
    runs = [
        run
        for path in paths
        for source in _sources(Path(path))
        for run in _read(source, model=model, attention=policy, tokenizer=tokenizer)
    ]
    if not runs:
        raise SamplesError("no samples: the sources hold tables of results alone")
    return [_with_prompts(run, prompt_tokens) for run in _with_architecture(runs, config)]


def _sources(path: Path) -> list[Path]:
    """A run folder, or a file; of another directory, those directly in it."""
    if not path.exists():
        raise SamplesError(f"{path}: not a run folder, nor a file of samples: no such file or directory")
    if path.name == "samples.jsonl" and (path.parent / "run.json").exists():
        return [path.parent]
    if not path.is_dir() or (path / "run.json").exists():
        return [path]
    sources = []
    for entry in sorted(path.iterdir()):
        table = entry.suffix.lower() in ENDINGS and not entry.is_dir()
        if table and entry.suffix.lower() == ".csv" and is_results(read_rows(entry)):
            warnings.warn(f"{entry}: a table of results, not of samples; passed over", stacklevel=3)
        elif table or (entry / "run.json").exists():
            sources.append(entry)
    if not sources:
        raise SamplesError(f"{path}: not a run folder (it holds no run.json), nor a directory of runs or sample files")
    return sources


def _read(source: Path, *, model: str | None, attention: AttentionPolicy | None, tokenizer: Any) -> list[RunData]:
    if source.is_dir():
        run = run_data(read_run(source))
        reconcile(source, "model", run.model, model)
        reconcile(source, "attention", run.attention, attention)
        return [run]
    rows = read_rows(source)
    if source.suffix.lower() == ".jsonl" and paper_traces.is_paper_trace([fields for _, fields in rows[:2]]):
        return [paper_traces.read_paper_trace(source, rows, model=model, attention=attention, tokenizer=tokenizer)]
    return read_table(source, rows, model, attention)


def _with_architecture(runs: Sequence[RunData], config: Configs | None) -> list[RunData]:
    """The runs, those of unknown architecture with the given one, or the published one of their name."""
    unknown = sorted({run.model for run in runs if run.config is None and published_config(run.model) is None})
    which = ", ".join(unknown) or "none"
    if isinstance(config, ModelConfig):
        if len(unknown) != 1:
            raise SamplesError(
                f"a config is for the one model whose architecture is not known; of these it is {which}; name each "
                "model with its own (--config MODEL=config.json)"
            )
        config = {unknown[0]: config}
    if strangers := [name for name in config or {} if name not in unknown]:
        raise SamplesError(
            f"a config is given for {strangers[0]!r:.60}, which is no model of unknown architecture (those: {which})"
        )
    named = [run if run.config else _as_published(run) for run in runs]
    return [run if run.config else dataclasses.replace(run, config=(config or {}).get(run.model)) for run in named]


def _with_prompts(run: RunData, prompt_tokens: int | None) -> RunData:
    """The run, its prompts of the given length where it says none of their lengths. Refuses one that says some."""
    if prompt_tokens is None:
        return run
    stated = [count for count in list(run.prompt_tokens) if count is not None]  # pyright: ignore[reportArgumentType]
    if stated:
        raise SamplesError(
            f"{run.model} {run.attention}: states the prompts' tokens itself ({stated[0]}, for one); leave "
            "--prompt-tokens out"
        )
    return dataclasses.replace(run, prompt_tokens=[prompt_tokens] * len(run.problem))


def _as_published(run: RunData) -> RunData:
    shape = published_config(run.model)
    return dataclasses.replace(run, model=shape.name, config=shape) if shape else run
