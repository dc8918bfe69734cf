"""Samples of any format as RunData: run folders, plain tables (tables.py), the paper's own JSONL (paper_traces.py)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.analysis import paper_traces
from kinetics_jax.analysis.samples import RunData, SamplesError, reconcile, run_data
from kinetics_jax.analysis.tables import ENDINGS, MAX_COUNT, Row, is_results, published_config, read_rows, read_table
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.errors import shown
from kinetics_jax.runs.folder import read_run

Configs = PricedModel | Mapping[str, PricedModel]
# Of a ModelConfig, what prices depend on.
SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "tie_word_embeddings",
    "num_experts",
    "experts_per_token",
    "moe_intermediate_size",
)


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
    bare_questions: bool = False,
) -> list[RunData]:
    """The samples of several sources, a RunData for every configuration of each; `samples.pooled` makes them one.

    A source is a run folder (or its samples.jsonl), a file (.csv, .jsonl or .parquet), or a directory of those, also
    in folders (`sources`); tables of results in a directory are passed over with a warning. `model`, `attention` (a
    policy or its spelling) and `prompt_tokens` are for files that do not say; where one does, they must not contradict.
    A table that names no attention is dense. The architecture of a published model is known by its name; that of
    another is None unless `config` gives it: of the one model that is not known, or by name. `tokenizer` counts the
    tokens of the paper's own files: a tokenizers.Tokenizer, the path of a tokenizer.json, or of the directory that
    holds one; without it their token counts are missing, unless their cut texts were graded, which records them. With
    `bare_questions` prompts of those files are the question alone, as the paper's code prices long chains of thought;
    else the question and the 80 tokens around it. Raises SamplesError naming file and line, TraceError for a
    broken run folder.
    """
    policy = parse_policy(attention) if isinstance(attention, str) else attention
    if prompt_tokens is not None and not 1 <= prompt_tokens <= MAX_COUNT:
        raise SamplesError(f"prompts of {prompt_tokens} tokens cannot be: 1 … {MAX_COUNT}")
    runs = [
        run if run.source else dataclasses.replace(run, source=str(source))
        for path in paths
        for source in sources(Path(path))
        for run in _read(source, model=model, attention=policy, tokenizer=tokenizer, bare_questions=bare_questions)
    ]
    if not runs:
        raise SamplesError("no samples: the sources hold tables of results alone")
    return [_with_prompts(run, prompt_tokens) for run in _with_architecture(runs, config)]


def sources(path: Path) -> list[Path]:
    """A run folder, or a file of samples; of another directory, all those in it.

    Those directly in it; where there are none, those in its folders, as the paper's traces lie (dense/*.jsonl,
    topk/*.jsonl), or two levels down, where one of its folders alone holds any (AIME24/dense/*.jsonl). Raises
    SamplesError where there is nothing, and where several folders hold a set each.
    """
    if not path.exists():
        raise SamplesError(f"{path}: not a run folder, nor a file of samples: no such file or directory")
    if path.name == "samples.jsonl" and (path.parent / "run.json").exists():
        return [path.parent]
    if not path.is_dir() or (path / "run.json").exists():
        return [path]
    below = _folders(path)
    if found := _directly_in(path):
        if left_out := [folder.name for folder in below if any(map(_is_traces_or_run, _entries(folder)))]:
            warnings.warn(
                f"{path}: its folders {shown(', '.join(left_out), 200)} hold samples too, which are left out beside "
                "those directly in it; name them to read them",
                stacklevel=3,
            )
        return found
    if found := [source for folder in below for source in _directly_in(folder)]:
        return found
    sets = {folder: [each for inner in _folders(folder) for each in _directly_in(inner)] for folder in below}
    held = [folder.name for folder, found in sets.items() if found]
    if len(held) > 1:
        raise SamplesError(f"{path}: holds {len(held)} sets of samples ({shown(', '.join(held), 200)}); name one")
    if not held:
        raise SamplesError(f"{path}: not a run folder (it holds no run.json), nor a directory of runs or sample files")
    return sets[path / held[0]]


def _directly_in(directory: Path) -> list[Path]:
    """The run folders and sample files of a directory. Tables of results are passed over with a warning."""
    found = []
    for entry in _entries(directory):
        table = entry.suffix.lower() in ENDINGS and not entry.is_dir()
        if table and entry.suffix.lower() == ".csv" and is_results(read_rows(entry)):
            warnings.warn(f"{entry}: a table of results, not of samples; passed over", stacklevel=4)
        elif table or (entry / "run.json").exists():
            found.append(entry)
    return found


def _is_traces_or_run(entry: Path) -> bool:
    return (entry / "run.json").exists() or (entry.suffix.lower() == ".jsonl" and not entry.is_dir())


def _folders(directory: Path) -> list[Path]:
    """The folders of a directory, without run folders and hidden ones."""
    return [
        entry
        for entry in _entries(directory)
        if entry.is_dir() and not entry.name.startswith(".") and not (entry / "run.json").exists()
    ]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise SamplesError(f"{directory}: cannot be read ({error.strerror})") from error


def _read(source: Path, *, model: str | None, attention: AttentionPolicy | None, **of_traces: Any) -> list[RunData]:
    """`of_traces`: arguments of `read_paper_trace`."""
    if source.is_dir():
        run = run_data(read_run(source))
        reconcile(source, "model", run.model, model)
        reconcile(source, "attention", run.attention, attention)
        return [run]
    rows = read_rows(source)
    if _is_trace(source, rows):
        return [paper_traces.read_paper_trace(source, rows, model=model, attention=attention, **of_traces)]
    return read_table(source, rows, model, attention)


def _with_architecture(runs: Sequence[RunData], config: Configs | None) -> list[RunData]:
    """The runs, those of unknown architecture with the given one, or the published one of their name."""
    unknown = sorted({run.model for run in runs if run.config is None and published_config(run.model) is None})
    which = ", ".join(unknown) or "none"
    config = _without_published(runs, config)
    if isinstance(config, PricedModel):
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


def read_trace_rows(source: Path) -> list[Row]:
    """The records of a file of the paper's traces. Raises SamplesError for anything else."""
    rows = read_rows(source)
    if not _is_trace(source, rows):
        raise SamplesError(
            f"{source}: not a run folder, nor a file of the paper's traces (query, prediction, score): there are no "
            "texts to grade"
        )
    return rows


def _is_trace(source: Path, rows: Sequence[Row]) -> bool:
    return source.suffix.lower() == ".jsonl" and paper_traces.is_paper_trace([fields for _, fields in rows[:2]])


def _without_published(runs: Sequence[RunData], config: Configs | None) -> Configs | None:
    """The given architectures but those of published models: what is said twice must agree.

    Raises SamplesError naming the fields in which one differs from the published model of its name.
    """
    models = {shape.name if (shape := published_config(run.model)) else run.model for run in runs}
    if isinstance(config, PricedModel):
        given: Mapping[str, PricedModel] = {name: config for name in models if len(models) == 1}
    else:
        given = config or {}
    published = {name: shape for name in given if (shape := published_config(name)) and shape.name in models}
    for name, shape in published.items():
        if differ := _differences(given[name], shape):
            raise SamplesError(
                f"{name}: the config given says {differ} as the published model of that name has; leave it out, or "
                "name the model apart"
            )
    if isinstance(config, PricedModel):
        return None if published else config
    return {name: shape for name, shape in given.items() if name not in published}


def _differences(given: PricedModel, known: PricedModel) -> str:
    """In which fields that prices depend on an architecture differs from a published one; empty for none."""
    if isinstance(given, ModelConfig) and isinstance(known, ModelConfig):
        apart = [field for field in SHAPE if getattr(given, field) != getattr(known, field)]
        return ", ".join(f"{field} {getattr(given, field)}, not {getattr(known, field)}" for field in apart)
    if isinstance(given, ModelConfig) or isinstance(known, ModelConfig):
        return "another kind of model, not the same"
    alike = ("hidden_size", "vocab_size", "num_layers", "total_parameters", "matmul_parameters", "layers")
    field = next((field for field in alike if getattr(given, field) != getattr(known, field)), "")
    return (
        "other layers than"
        if field == "layers"
        else field and f"{field} {getattr(given, field)}, not {getattr(known, field)}"
    )


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
