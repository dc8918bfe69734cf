"""One reader of tokenizer.json: from a file or its directory, and what is none."""

import pytest

from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.errors import CheckpointError
from kinetics_jax.tokenizer import TOKENIZER, read_tokenizer


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
