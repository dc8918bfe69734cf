"""Checkpoints of every layout, broken in one file: each is loaded, or refused in one clear error, in time."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from fuzz.mutate import Outcome, mutate_bytes, mutate_json, outcome, replace_file

import kinetics_jax as kj
from kinetics_jax.checkpoints.convert import convert
from kinetics_jax.tasks.prompts import ChatTemplate, has_chat_template

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": [256, 258],
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
    "use_sliding_window": False,
    "sliding_window": 16,
    "layer_types": ["full_attention", "full_attention"],
}
LLAMA_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
HEADER = 2000  # first bytes of a safetensors file to break most often


def write_sources(folder: Path) -> dict[str, Path]:
    """A whole checkpoint of every layout, by its name."""
    from tiny import tiny_tensors, write_checkpoint

    sources = {"hf": write_checkpoint(folder / "hf", CONFIG, tiny_tensors(CONFIG))}
    write_tokenizer(sources["hf"])
    dense = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": LLAMA_SCALING}
    dense = {key: value for key, value in dense.items() if "expert" not in key and not key.endswith("_step")}
    dense = {key: dense[key] for key in dense.keys() - {"norm_topk_prob", "moe_intermediate_size", "mlp_only_layers"}}
    dense |= {"num_hidden_layers": 1, "layer_types": None}
    sources["shards"] = write_checkpoint(folder / "shards", dense, tiny_tensors(dense), shards=2)
    sources["orbax"] = convert(sources["shards"], folder / "orbax", to="orbax")
    for name, parts in (("gguf", 1), ("split", 2)):
        (folder / name).mkdir()
        sources[name] = write_gguf(folder / name, parts)
    return sources


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.enable_truncation(16)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>"},
        "add_bos_token": True,
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258], "top_p": 0.9}))


def write_gguf(folder: Path, parts: int) -> Path:
    from tokenizers import pre_tokenizers

    rng = np.random.default_rng(0)
    hidden, ffn, vocab = 32, 64, 260
    shapes = {"token_embd": (vocab, hidden), "output_norm": (hidden,)}
    block = {
        "attn_q": (hidden, hidden),
        "attn_k": (16, hidden),
        "attn_v": (16, hidden),
        "attn_output": (hidden, hidden),
    }
    block |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
    block |= {"attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q_norm": (16,), "attn_k_norm": (16,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "hi"]
    names = list(shapes)
    for part in range(parts):
        path = folder / ("tiny.gguf" if parts == 1 else f"tiny-{part + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(path, "qwen3")
        numbers = {"embedding_length": hidden, "feed_forward_length": ffn, "block_count": 1, "context_length": 64}
        numbers |= {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 16}
        for key, value in numbers.items():
            writer.add_uint32(f"qwen3.{key}", value)
        writer.add_float32("qwen3.rope.freq_base", 1e4)
        writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
        if parts > 1:
            for key, value in (("no", part), ("count", parts), ("tensors.count", len(names))):
                writer.add_uint16(f"split.{key}", value)
        writer.add_string("tokenizer.ggml.model", "gpt2")
        writer.add_string("tokenizer.ggml.pre", "gpt-2")
        writer.add_array("tokenizer.ggml.tokens", tokens)
        writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3] * 3 + [1])
        writer.add_array("tokenizer.ggml.merges", ["h i"])
        writer.add_uint32("tokenizer.ggml.eos_token_id", 258)
        writer.add_string("tokenizer.chat_template", "{{ messages[0].content }}")
        for name in names[part::parts]:
            tensor = rng.standard_normal(shapes[name]).astype(np.float32)
            if len(shapes[name]) == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(f"{name}.weight", gguf.quants.quantize(tensor, kind), raw_dtype=kind)
            else:
                writer.add_tensor(f"{name}.weight", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / ("tiny.gguf" if parts == 1 else f"tiny-00001-of-{parts:05d}.gguf")


def break_file(path: Path, rng: random.Random) -> str:
    """Breaks a file, or puts something else in its place; says what was done."""
    if rng.random() < 0.04:
        return f"{path.name}: {replace_file(path, rng)}"
    data = path.read_bytes()
    if path.suffix == ".json":
        broken = mutate_json(data.decode(), rng)
    elif path.suffix == ".safetensors" and rng.random() < 0.6:
        length = int.from_bytes(data[:8], "little")
        header = mutate_json(data[8 : 8 + length].decode(), rng)
        broken = (len(header) if rng.random() < 0.9 else length).to_bytes(8, "little") + header + data[8 + length :]
    else:
        broken = mutate_bytes(
            data, rng, within=None if rng.random() < 0.2 else 9000 if path.suffix == ".gguf" else HEADER
        )
    path.write_bytes(broken)
    return path.name


def use(path: Path) -> None:
    """What a user does with a checkpoint, before any program is compiled."""
    lm = kj.load(path, dtype="float32")
    _ = lm.fingerprint
    if (lm.directory / "tokenizer.json").exists():
        lm.encode("Hello, world")
        lm.decode([1, 2, 3])
    has_chat_template(lm.directory)


def use_more(path: Path) -> None:
    """The same, its chat template rendered, and converted to another layout: for cases that may take longer."""
    use(path)
    lm = kj.load(path, dtype="float32")
    if has_chat_template(lm.directory):
        ChatTemplate(lm.directory, thinking=True).user_turn("Hello")
    with tempfile.TemporaryDirectory() as folder:
        kj.load(convert(path, Path(folder) / "converted", dtype="bfloat16"))


LAYOUTS = ("hf", "hf", "hf", "shards", "shards", "gguf", "gguf", "gguf", "split", "orbax")


def run_case(
    number: int, sources: dict[str, Path], folder: Path, *, call: Callable[[Path], None] = use
) -> tuple[str, Outcome]:
    """Case `number`: what was broken, and how it ended. `folder` is used for the broken copy, and emptied again."""
    rng = random.Random(number)
    layout = rng.choice(LAYOUTS)
    source = sources[layout]
    target = folder / f"case{number}"
    shutil.copytree(source.parent if source.is_file() else source, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    what = f"{number} {layout} {break_file(rng.choice(files), rng)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ended = outcome(lambda: call(target / source.name if source.is_file() else target))
    shutil.rmtree(target)
    return what, ended
