"""One reader of tokenizer.json: from a file or its directory, and what is none."""

import json

import pytest

from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.errors import CheckpointError
from kinetics_jax.tokenizer import TOKENIZER, added_tokens, read_tokenizer


def test_a_file_or_its_directory():
    directory = ASSETS / builtin_models()[0]
    assert read_tokenizer(directory).to_str() == read_tokenizer(str(directory / TOKENIZER)).to_str()


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file; name a tokenizer\.json, or the dir"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.json: no such file; give ids$"):
        read_tokenizer(tmp_path / "none.json", cure="give ids")
    (tmp_path / TOKENIZER).write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        read_tokenizer(tmp_path)


@pytest.fixture
def tokenizer():
    """Words, and a first and a last token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2, "a": 3, "b": 4}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def with_first(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_trainer_left_does_not_cut_or_fill_prompts(tokenizer, side, tmp_path):
    tokenizer.enable_truncation(2, direction=side)
    tokenizer.enable_padding(direction=side, length=80, pad_to_multiple_of=64)
    tokenizer.save(str(tmp_path / TOKENIZER))
    assert read_tokenizer(tmp_path).encode("a b a b b").ids == [3, 4, 3, 4, 4]


SETTINGS = [{}, {"add_bos_token": None}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_added_to_a_text_is_what_transformers_adds(tokenizer, first, settings, tmp_path):
    transformers = pytest.importorskip("transformers")
    if first:
        with_first(tokenizer)
    tokenizer.save(str(tmp_path / TOKENIZER))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    ours = read_tokenizer(tmp_path)
    assert ours.encode("a b").ids == transformers.AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids
    assert added_tokens(ours) == ([0] if first else [], [])


def test_two_files_that_add_different_tokens_are_told(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / TOKENIZER))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    with pytest.warns(UserWarning, match=r"add_bos_token: true, and tokenizer\.json adds none, which counts"):
        read_tokenizer(tmp_path)
    with_first(tokenizer)
    tokenizer.save(str(tmp_path / TOKENIZER))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": false}')
    with pytest.warns(UserWarning, match=r"add_bos_token: false, and tokenizer\.json adds \[0\], which counts"):
        assert added_tokens(read_tokenizer(tmp_path)) == ([0], [])
    for text, says in (('{"add_bos_token": 1}', "add_bos_token must be true or false, got 1"), ("[", "not valid JSON")):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=says):
            read_tokenizer(tmp_path)
