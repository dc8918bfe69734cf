"""The tokenizer in a GGUF file's metadata, written as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.checkpoints.gguf_header import GGUFHeader
from kinetics_jax.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

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

    Raises CheckpointError for a tokenizer that is not byte-level BPE, or that splits text in an unknown way.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    fields = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if "model" not in fields:
        return
    if fields["model"] != "gpt2":
        raise CheckpointError(
            f"{header.path}: tokenizer.ggml.model {fields['model']!r} is not implemented (gpt2, byte-level BPE, is)"
        )
    missing = [key for key in ("pre", "tokens", "token_type", "merges") if key not in fields]
    if missing:
        raise CheckpointError(f"{header.path}: its tokenizer is missing {', '.join(missing)}")
    tokens, kinds = fields["tokens"], fields["token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED}
    try:
        bpe = models.BPE(vocabulary, merges, ignore_merges=fields["pre"] == "llama-bpe")
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{header.path}: its tokenizer is broken ({error})") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(fields["pre"], header.path)
    if fields["pre"] == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for index, token in enumerate(tokens):  # in the order of ids
        if kinds[index] == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kinds[index] == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    tokenizer.save(str(target / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = fields.get(f"{key}_token_id")
        if index is not None and 0 <= index < len(tokens):
            settings[f"{name}_token"] = tokens[index]
    if template := header.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _pre_tokenizer(name: str, path: Path) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in PATTERNS:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"), whole])
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name == "gpt-2":
        return words
    known = ", ".join((*PATTERNS, *SPELLED))
    raise CheckpointError(f"{path}: tokenizer.ggml.pre {name!r} is not implemented (implemented: {known})")
