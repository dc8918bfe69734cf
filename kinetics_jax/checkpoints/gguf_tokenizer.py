"""The tokenizer in a GGUF file's metadata, written as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kinetics_jax.checkpoints.gguf_header import GGUFHeader
from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import encode_utf8
from kinetics_jax.tokenizer import REFUSED, SETTINGS, TOKENIZER

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from tokenizers.processors import PostProcessor

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before merges apply, by tokenizer.ggml.pre: a pattern, or what `_pre_tokenizer` spells out.
PATTERNS = {"qwen2": WORDS % "", "deepseek-r1-qwen": WORDS % "", "llama-bpe": WORDS % "{1,3}"}
SPELLED = ("gpt-2", "smollm")


def write_tokenizer(header: GGUFHeader, target: Path) -> None:
    """Writes both files into a directory; neither if the metadata hold no tokenizer.

    Of a tokenizer that splits text in an unnamed or unknown way, only why it is refused is written (tokenizer.REFUSED),
    and a warning says it: prompts as ids do without. Raises CheckpointError for a tokenizer that is not byte-level BPE,
    or that is broken.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    fields = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if "model" not in fields:
        return
    if (model := fields["model"]) != "gpt2":
        raise CheckpointError(
            f"{header.path}: tokenizer.ggml.model {spelled(model)} is not implemented (gpt2, byte-level BPE, is)"
        )
    missing = [key for key in ("pre", "tokens", "token_type", "merges") if key not in fields]
    if missing and missing != ["pre"]:
        raise CheckpointError(f"{header.path}: its tokenizer is missing {', '.join(missing)}")
    tokens, kinds, merges = _lists(fields, header.path)
    pre = fields.get("pre")
    if not isinstance(pre, str) or pre not in (*PATTERNS, *SPELLED):
        known = ", ".join((*PATTERNS, *SPELLED))
        why = (
            f"{header.path}: how its tokenizer cuts text is not known (tokenizer.ggml.pre is "
            f"{'missing' if pre is None else spelled(pre)}; known: {known})"
        )
        (target / REFUSED).write_text(why, encoding="utf-8")
        warnings.warn(f"{why}; prompts must be token ids", stacklevel=2)
        return
    vocabulary = {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED}
    try:
        bpe = models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{header.path}: its tokenizer is broken ({shown(str(error), 200)})") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for index, token in enumerate(tokens):  # in the order of ids
        if kinds[index] == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kinds[index] == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    tokenizer.post_processor = _post_processor(fields, tokens, pre)
    tokenizer.save(str(target / TOKENIZER))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = fields.get(f"{key}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            settings[f"{name}_token"] = tokens[index]
    template = header.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{header.path}: tokenizer.chat_template is {spelled(template, 40)}, no text")
    if template:
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (target / SETTINGS).write_bytes(encode_utf8(text))


def _lists(fields: dict[str, Any], path: Path) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Tokens, their types and the merges. Raises CheckpointError for what are no such lists."""
    tokens, kinds, merges = fields["tokens"], fields["token_type"], fields["merges"]
    for name, value in (("tokens", tokens), ("merges", merges)):
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise CheckpointError(f"{path}: tokenizer.ggml.{name} is {spelled(value, 40)}, no list of texts")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.token_type does not name the type of each of {len(tokens)} tokens"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if odd := next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None):
        raise CheckpointError(f"{path}: tokenizer.ggml.merges holds {spelled(odd, 40)}, no pair of tokens")
    if twice := len(tokens) - len(set(tokens)):
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens holds {twice} tokens twice")
    for name in ("add_bos_token", "add_eos_token"):
        if not isinstance(fields.get(name, False), bool):
            raise CheckpointError(f"{path}: tokenizer.ggml.{name} is {spelled(fields[name], 40)}, not true or false")
    return tokens, kinds.tolist(), cast(list[tuple[str, str]], pairs)


def _post_processor(fields: dict[str, Any], tokens: list[str], pre: str) -> PostProcessor:
    """What is added to a text: `add_bos_token` and `add_eos_token`; a Llama 3 text gets its first token by default, as
    llama.cpp has it.
    """
    from tokenizers import processors

    single, special = ["$A"], []
    for name, place, default in (("bos", 0, pre == "llama-bpe"), ("eos", 2, False)):
        index = fields.get(f"{name}_token_id")
        if fields.get(f"add_{name}_token", default) and type(index) is int and 0 <= index < len(tokens):
            single.insert(place, tokens[index])
            special.append((tokens[index], index))
    whole = processors.ByteLevel(trim_offsets=False)
    if not special:
        return whole
    return processors.Sequence([whole, processors.TemplateProcessing(single=single, special_tokens=special)])


def _pre_tokenizer(name: str) -> PreTokenizer:
    """How text is split before merges apply, by one of the names above."""
    from tokenizers import Regex, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in PATTERNS:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"), whole])
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return words
