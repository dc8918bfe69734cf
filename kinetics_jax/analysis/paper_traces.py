"""The JSONL files that the paper's own code writes, as RunData.

Line 1 says what the run was: `attn_local`, `attn_topk`, `attn_block_topk`, `attn_block_size`, `attn_stride`,
`attn_random_select`, `attn_random_nsample`, `attn_layer_skip` (the dense layers). Every other line is a sample:
`query`; `choices` or `choice`, the known answer (a text, or a list of one); `prediction`, the model's text or a list of
one; `score`, 0 or 100. Nothing says which of a question's samples it is, what the model was called, or how many tokens
it generated: questions are told apart by their text, samples by their place in the file, the model and the task by the
file's name where that has them (aime24_qwen3-1-7b_local0.jsonl), and tokens are counted anew, unless the grades of its
cut texts stand beside it (trace_cuts.py), which record them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.analysis.samples import RunData, SamplesError, reconcile
from kinetics_jax.analysis.trace_cuts import read_cut_texts
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.litesys_random_tokens import LiteSysRandomTokens
from kinetics_jax.attention.policies.litesys_strided_blocks import LiteSysStridedBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import PUBLISHED, published_names
from kinetics_jax.errors import shown, spelled
from kinetics_jax.runs.records import MAX_TOKENS, NAME, TEXT, Kind, misfits, whole
from kinetics_jax.tokenizer import read_tokenizer

CHOOSING = ("attn_topk", "attn_block_topk", "attn_random_select", "attn_random_nsample")  # that code takes one of them
ATTENTION_FIELDS = ("attn_local", *CHOOSING, "attn_block_size", "attn_stride", "attn_layer_skip")
LAYERS = Kind(
    "a list of layers", lambda value: type(value) is list and all(type(layer) is int and layer >= 0 for layer in value)
)
# Of the first line, where they are there.
METADATA = {
    "model": NAME.or_null(),
    "task": TEXT.or_null(),
    **dict.fromkeys(("attn_local", *CHOOSING, "attn_block_size", "attn_stride"), whole(0, MAX_TOKENS).or_null()),
    "attn_layer_skip": LAYERS.or_null(),
}
SINK_TOKENS = 4
# Around a question that code puts its instruction and the chat template, 80 tokens of Qwen3's tokenizer.
PROMPT_AROUND_QUESTION = 80
MAX_ID = 48  # characters of a question that stand in its id
SPARSE_NAMES = re.compile(r"topk|_local\d|stride|quest|nsample")


def is_paper_trace(first: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first two records of a file are in the format of the paper's code."""
    return any({"query", "prediction", "score"} <= record.keys() for record in first)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A file's first line, and of its samples, in order, one entry each: where it stands ("line 7"), the question, the
    known answer, the text, and the grade.
    """

    path: Path
    metadata: Mapping[str, Any]
    places: Sequence[str]
    questions: Sequence[str]
    answers: Sequence[str]
    texts: Sequence[str]
    correct: Sequence[bool | None]

    @property
    def model(self) -> str | None:
        """As the first line or the file's name says it."""
        return self.metadata.get("model") or _named(self.path)[1]

    @property
    def attention(self) -> AttentionPolicy | None:
        """As the first line says it; None for nothing. Raises SamplesError for one that has no counterpart here."""
        return _policy(self.path, self.metadata)

    @property
    def task(self) -> str:
        """As the first line or the file's name says it; empty for nothing."""
        return str(self.metadata.get("task") or _named(self.path)[0])


def parse_trace(path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Trace:
    """A file's records, each with its place ("line 7"). Raises SamplesError naming file and line."""
    metadata: Mapping[str, Any] = {}
    if "query" not in rows[0][1]:
        (_, metadata), *rows = rows
    if not rows:
        raise SamplesError(f"{path}: holds no samples")
    if fault := misfits(metadata, METADATA, all_needed=False):
        raise SamplesError(f"{path}, line 1: {fault}")
    places = [where for where, _ in rows]
    questions, answers, texts, correct = zip(*(_sample(path, where, fields) for where, fields in rows), strict=True)
    known: dict[str, tuple[str, str]] = {}
    for where, question, answer in zip(places, questions, answers, strict=True):
        if known.setdefault(question_id(question), (question, answer)) != (question, answer):
            raise SamplesError(f"{path}, {where}: the same question has another known answer further up")
    return Trace(path, metadata, places, questions, answers, texts, correct)


def read_paper_trace(
    path: Path,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    model: str | None = None,
    attention: AttentionPolicy | None = None,
    tokenizer: Any = None,
    bare_questions: bool = False,
) -> RunData:
    """A file's samples; `rows` are its records, each with its place ("line 7"). For the rest see `readers.read_all`.

    `output_tokens` are those of the prediction, without an end token that it does not spell; `prompt_tokens` those of
    the question and, unless `bare_questions`, the 80 that the paper's code puts around it. Without a tokenizer both are
    those recorded with the grades of cut texts, or None. Raises SamplesError naming file and line.
    """
    trace = parse_trace(path, rows)
    policy = reconcile(path, "attention", trace.attention, attention)
    if policy is None:
        raise SamplesError(f"{path}: does not say its attention (its first line has no attn_local …); name it")
    name = reconcile(path, "model", trace.model, model)
    if name is None:
        raise SamplesError(f"{path}: neither its first line nor its name says which model it is of; name the model")
    counts = None
    if tokenizer is not None:
        count = token_counter(tokenizer)
        distinct = list(dict.fromkeys(trace.questions))
        by_question = dict(zip(distinct, count(distinct), strict=True))
        counts = count(trace.texts), [by_question[question] for question in trace.questions]
    grades = read_cut_texts(trace, counts)
    lengths, of_questions = counts or (grades.counts if grades else None) or ([None] * len(trace.texts),) * 2
    around = 0 if bare_questions else PROMPT_AROUND_QUESTION
    ids = [question_id(question) for question in trace.questions]
    return RunData(
        model=name,
        attention=policy,
        config=None,
        problem=ids,
        sample=[(str(path.resolve()), i) for i in range(len(ids))],
        prompt_tokens=[None if tokens is None else tokens + around for tokens in of_questions],
        output_tokens=lengths,
        correct=list(trace.correct),
        task=trace.task,
        asked=dict(zip(ids, zip(trace.questions, trace.answers, strict=True), strict=True)),
        caps=grades.caps if grades else (),
        correct_within=grades.within(trace.correct) if grades else (),
        answers=(grades.answer or ()) if grades else (),
        answers_within=grades.answers_within if grades else (),
    )


def _sample(path: Path, where: str, fields: Mapping[str, Any]) -> tuple[str, str, str, bool | None]:
    """Question, known answer, text and grade of a record."""
    try:
        query, text = fields["query"], _one(fields["prediction"])
        gold = _one(fields["choices"] if "choices" in fields else fields["choice"])
        score = fields["score"]
    except KeyError as error:
        raise SamplesError(f"{path}, {where}: no {error.args[0]!r}") from error
    except ValueError as error:
        raise SamplesError(f"{path}, {where}: prediction and choices are a text, or a list of one") from error
    if not isinstance(query, str):
        raise SamplesError(f"{path}, {where}: query is no text")
    if score not in (0, 1, 100, None):
        raise SamplesError(f"{path}, {where}: score is 0 or 100, not {spelled(score)}")
    return query, gold, text, None if score is None else score > 0


def _one(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int | float) and abs(value) < 1e300:  # a known answer that is a number
        value = str(value)
    if not isinstance(value, str):
        raise ValueError
    return value


def _policy(path: Path, metadata: Mapping[str, Any]) -> AttentionPolicy | None:
    """The attention that the first line states, as that code reads it: dense unless `attn_local` is a number.

    Budgets are counted as its cost model does, so that they price alike under the upstream convention: k tokens and the
    local window of token top-k; the window, beside four sink tokens, where nothing is chosen.
    """
    said = {name: value for name, value in metadata.items() if name.startswith(("attn_", "quest_"))}
    if other := [
        name for name in said if name not in ATTENTION_FIELDS and name.startswith("attn_") and said[name] is not None
    ]:
        raise SamplesError(f"{path}: {shown(', '.join(other), 200)} of its first line has no counterpart here")
    if said.get("quest_topk_blocks") is not None:
        raise SamplesError(f"{path}: quest_topk_blocks of its first line has no counterpart here")
    local, size, stride = (said.get(name) for name in ("attn_local", "attn_block_size", "attn_stride"))
    chosen = {name: said[name] for name in CHOOSING if said.get(name)}
    if len(chosen) > 1:
        raise SamplesError(f"{path}: its first line gives {' and '.join(chosen)}, of which that code takes one")
    if stride is not None and "attn_block_topk" not in chosen:
        raise SamplesError(f"{path}: its first line gives attn_stride without attn_block_topk, which it belongs to")
    if local is None and all(said.get(name) is None for name in CHOOSING):
        if not metadata or (not said and SPARSE_NAMES.search(path.stem)):
            return None
        return Dense()
    skipped = said.get("attn_layer_skip")
    layers: Any = {} if skipped is None else {"dense_layers": tuple(skipped)}
    (name, count), local = next(iter(chosen.items()), ("", 0)), local or 0
    try:
        if name == "attn_block_topk":
            blocks: Any = {"pages": count, "page_size": size or 16, "local": local, **layers}
            return LiteSysBlockTopK(**blocks) if stride is None else LiteSysStridedBlocks(**blocks, stride=stride)
        if name.startswith("attn_random"):
            weights = "importance" if name == "attn_random_nsample" else "none"
            return LiteSysRandomTokens(samples=count, local=local, weights=weights, **layers)
        if name == "attn_topk":
            return TokenTopK(budget=count + local, **layers)
        return SlidingWindow(budget=SINK_TOKENS + local, sink_tokens=SINK_TOKENS, **layers)
    except PolicyError as error:
        raise SamplesError(f"{path}: its first line says {spelled(said, 200)}: {error}") from error


def _named(path: Path) -> tuple[str, str | None]:
    """The task and the published model that a file's name spells as the paper's do: aime24_qwen3-1-7b_local0.jsonl.

    None for the model where it spells none; an empty task where nothing stands before the model but its organisation.
    """
    stem = path.stem.lower().replace(".", "-")
    names = {name: model for name, model in published_names().items() if "/" not in name and name not in PUBLISHED}
    for name in sorted(names, key=len, reverse=True):
        spelled = re.sub("[-.]", "[-_]", name.lower())
        if found := re.fullmatch(rf"(?:(?P<parts>.*?)(?:_|--)|(?P<part>[a-z]+[0-9]*)-)?{spelled}(?:_.*)?", stem):
            before = re.split("_|--", found["parts"] or found["part"] or "")
            organisation = names[name].partition("/")[0].lower()
            return next((part for part in before if part != organisation), ""), names[name]
    return "", None


def question_id(question: str) -> str:
    """A question's id: its text where that is short, else its beginning and a hash of the whole."""
    text = " ".join(question.split())
    if len(text) <= MAX_ID:
        return text
    return f"{text[:MAX_ID]}… {hashlib.blake2b(question.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


def token_counter(tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to token counts; nothing is added before or after a text."""
    if isinstance(tokenizer, str | Path):
        tokenizer = read_tokenizer(tokenizer)

    def count(texts: Sequence[str]) -> list[int]:
        counts = []
        for start in range(0, len(texts), 64):  # bounds the memory of encodings
            batch = [
                text.encode("utf-8", "replace").decode() for text in texts[start : start + 64]
            ]  # no lone surrogates
            batch = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            counts += [len(encoding.ids) for encoding in batch]
        return counts

    return count
