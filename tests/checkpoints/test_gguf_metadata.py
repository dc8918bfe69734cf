"""What a GGUF file's metadata say: tokens that end a sample, how text is cut, what is added; and what cannot be so."""

import struct

import pytest
from test_gguf import TENSORS, write_gguf
from tiny import tiny_config, tiny_tensors

import kinetics_jax as kj
from kinetics_jax.config import ConfigError
from kinetics_jax.errors import CheckpointError


def vocabulary(**changes):
    """A tokenizer of bytes, and control tokens; `changes` of its fields (None: left out)."""
    letters = sorted(bytes_to_unicode())
    tokens = [*letters, "hi", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"]
    kinds = [1] * len(letters) + [1, 3, 3, 3, 1]
    fields = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": kinds, "merges": ["h i"], **changes}
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def bytes_to_unicode():
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


WIDE = tiny_config(vocab_size=261)


def test_end_tokens_are_taken_by_name_from_control_tokens(tmp_path):
    metadata = vocabulary(eos_token_id=259)
    write = {"metadata": metadata, "leave_out": ("eos_token_id", "eot_token_id")}
    lm = kj.load(write_gguf(tmp_path / "a.gguf", WIDE, tiny_tensors(WIDE), **write))
    assert lm.config.eos_token_ids == (259, 257)
    del metadata["tokenizer.ggml.eos_token_id"]
    assert kj.load(write_gguf(tmp_path / "b.gguf", WIDE, tiny_tensors(WIDE), **write)).config.eos_token_ids == (
        257,
        259,
    )


@pytest.mark.slow
@pytest.mark.parametrize("pre", [None, "default", "qwen35"])
def test_a_tokenizer_that_cuts_text_in_an_unknown_way_leaves_ids(tmp_path, pre):
    path = write_gguf(tmp_path / "a.gguf", WIDE, tiny_tensors(WIDE), metadata=vocabulary(pre=pre))
    named = f"'{pre}'" if pre else "missing"
    says = rf"how its tokenizer cuts text is not known \(tokenizer\.ggml\.pre is {named}"
    with pytest.warns(UserWarning, match=says):
        lm = kj.load(path)
    assert len(lm.generate([[5, 6]], sampling=kj.Sampling(max_tokens=2), min_tokens=2)[0].output_tokens) == 2
    with pytest.raises(CheckpointError, match=says + ".*prompts as lists of token ids"):
        lm.encode("text")


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({}, ([], [])),
        ({"add_bos_token": True, "bos_token_id": 257}, ([257], [])),
        ({"add_bos_token": True, "bos_token_id": 257, "add_eos_token": True, "eos_token_id": 259}, ([257], [259])),
        ({"pre": "llama-bpe", "bos_token_id": 257}, ([257], [])),
        ({"pre": "llama-bpe", "bos_token_id": 257, "add_bos_token": False}, ([], [])),
    ],
)
def test_what_is_added_to_texts(tmp_path, changes, added):
    metadata = vocabulary(**changes)
    lm = kj.load(write_gguf(tmp_path / "a.gguf", WIDE, tiny_tensors(WIDE), metadata=metadata))
    plain = lm.encode("hi", add_special_tokens=False)
    assert lm.encode("hi") == [*added[0], *plain, *added[1]]
    assert lm.added_tokens == added


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"qwen3.rope.scaling.factor": 2.0}, r"rope\.scaling\.factor = 2\.0 is not implemented"),
        ({"qwen3.rope.scale_linear": 2.0}, r"rope\.scale_linear = 2\.0 is not implemented"),
        ({"qwen3.attention.causal": 0}, r"attention\.causal = 0 is not implemented"),
        ({"qwen3.attention.scale": 0.5}, r"attention\.scale = 0\.5 is not implemented"),
        ({"qwen3.vocab_size": 130}, r"vocab_size is 130, and token_embd\.weight has 131 rows"),
        ({"general.type": "adapter"}, "holds 'adapter', not a whole model"),
        ({"qwen3.expert_count": 4}, "expert_count = 4: not implemented"),
        ({"qwen3.context_length": [1, 2]}, r"qwen3\.context_length is a list"),
        ({"qwen3.rope.freq_base": float("nan")}, "rope_theta must be a positive number"),
        ({"tokenizer.ggml.eos_token_id": [1, 2]}, "no token ids"),
        ({"general.alignment": 0}, "general.alignment is 0"),
        ({"split.count": 5000}, "split.count is 5000"),
        (vocabulary(tokens=5), "tokenizer.ggml.tokens is 5, no list of texts"),
        (vocabulary(merges=["a"]), "tokenizer.ggml.merges holds 'a', no pair"),
        (vocabulary(token_type=[1, 2]), "does not name the type of each of 261 tokens"),
        (vocabulary(merges=["a xyz"]), "its tokenizer is broken"),
    ],
)
def test_metadata_that_ask_for_another_model_or_are_broken(tmp_path, metadata, says):
    taken = tuple(
        key for key in ("context_length", "rope.freq_base", "eos_token_id") if any(key in k for k in metadata)
    )
    path = write_gguf(tmp_path / "x.gguf", tiny_config(), TENSORS, metadata=metadata, leave_out=taken)
    with pytest.raises((ConfigError, CheckpointError), match=says) as error:
        kj.load(path)
    assert len(str(error.value)) < 500


def test_metadata_that_are_not_known_are_named(tmp_path):
    metadata = {"qwen3.depth_scale": 0.5, "qwen3.off": 0, "general.anything": "x", "qwen3.rope.scaling.factor": 1.0}
    with pytest.warns(UserWarning, match=r"not known are ignored: qwen3\.depth_scale = 0\.5; if"):
        kj.load(write_gguf(tmp_path / "x.gguf", tiny_config(), TENSORS, metadata=metadata))


def test_tensors_that_overlap_or_are_not_aligned(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", tiny_config(), TENSORS)
    whole = path.read_bytes()
    name = b"blk.1.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8 + 4
    (offset,) = struct.unpack("<Q", whole[at : at + 8])
    for other, says in (
        (offset - 64, "hold the same bytes"),
        (offset + 5, "not aligned to 32"),
        (2**62, "is cut short"),
    ):
        path.write_bytes(whole[:at] + struct.pack("<Q", other) + whole[at + 8 :])
        with pytest.raises(CheckpointError, match=says):
            kj.load(path)


def test_headers_that_ask_for_too_much_end_at_once(tmp_path):
    path = tmp_path / "x.gguf"
    key = struct.pack("<Q", 1) + b"a"
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(5000))
    for data, says in (
        (struct.pack("<QQ", 2**60, 0), "it would hold 1,152,921,504,606,846,976 tensors"),
        (struct.pack("<QQ", 0, 2**60), "1,152,921,504,606,846,976 keys"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 9) + nested, "nest more than 4 deep"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 2**40), "entries of lists"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 4, 2**40), "numbers"),
        (struct.pack("<QQ", 0, 2) + (key + struct.pack("<IB", 0, 1)) * 2, "holds a twice"),
        (struct.pack("<QQ", 1, 0) + key + struct.pack("<I", 77), "77 dimensions"),
        (struct.pack("<QQ", 1, 0) + key + struct.pack("<IQIQ", 1, 2**50, 0, 0), "would have shape"),
    ):
        path.write_bytes(b"GGUF" + struct.pack("<I", 3) + data + bytes(64))
        with pytest.raises(CheckpointError, match=says):
            kj.load(path)
