"""The worker that times `transformers` on torch: greedy decoding with random weights and a random cache. DynamicCache,
the default of its `generate`, or StaticCache and torch.compile, as its guides advise. Needs only torch and
transformers.
"""

from __future__ import annotations

import gc
import inspect
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers

# Imported by path: this interpreter may not have what the package imports.
from serving import Measure, check_host_memory, serve
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM, StaticCache

GPU = torch.cuda.is_available()


class Transformers:
    """Holds one model at a time, of the last shape asked for."""

    def __init__(self) -> None:
        self.shape: dict[str, Any] | None = None
        self.model: Any = None
        self.facts = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if GPU else "cpu",
            "threads": torch.get_num_threads(),
        }

    def make(self, point: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()
        if point["shape"] != self.shape:
            self._load(point["shape"])
        decode = Decoding(self.model, point)
        decode.seconds_per_step()  # the first call compiles, the second records CUDA graphs
        decode.seconds_per_step()
        return decode.seconds_per_step, {"attention": self.model.config._attn_implementation, **self.facts}

    def _load(self, shape: dict[str, Any]) -> None:
        self.shape, self.model = None, None
        config = Qwen3Config.from_dict(shape)
        dtype, device = (torch.bfloat16, "cuda") if GPU else (torch.float32, "cpu")
        torch.manual_seed(0)
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config)
        if not GPU:
            check_host_memory(4 * sum(parameter.numel() for parameter in model.parameters()))
        torch.set_default_dtype(dtype)
        with torch.device(device):
            self.model = Qwen3ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        self.shape = shape

    def out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def bandwidth(self) -> float:
        raise NotImplementedError("the engine worker measures the bandwidth")


class Decoding:
    """Decode steps of `batch` sequences of `context` tokens each; every call starts at the same context."""

    def __init__(self, model: Any, point: dict[str, Any]) -> None:
        self.model, self.batch, self.steps, self.context = model, point["batch"], point["steps"], point["context"]
        config, self.compiled = model.config, point["runner"].endswith("compiled")
        kv = (self.batch, config.num_key_value_heads, self.context, config.head_dim)
        if not GPU:
            length = self.context + self.steps
            check_host_memory(8 * config.num_hidden_layers * kv[0] * kv[1] * length * kv[3])
        like = {"dtype": model.dtype, "device": model.device}
        if self.compiled:
            torch._dynamo.reset()  # else it stops compiling after a few shapes
            self.cache: Any = StaticCache(config=config, max_cache_len=self.context + self.steps)
            for layer in self.cache.layers:
                key = torch.empty(kv[0], kv[1], 0, kv[3], **like)
                layer.lazy_initialization(key, key)
                layer.keys[:, :, : self.context].normal_()
                layer.values[:, :, : self.context].normal_()
            self.call = torch.compile(model.__call__, mode="reduce-overhead" if GPU else "default")
        else:
            self.cache = DynamicCache(config=config)
            for layer in range(config.num_hidden_layers):
                self.cache.update(torch.randn(kv, **like), torch.randn(kv, **like), layer)
            self.call = model
        named = inspect.signature(model.forward).parameters  # the older name still works but warns
        self.cache_name = "cache" if "cache" in named else "past_key_values"
        self._rewind()

    def _rewind(self) -> None:
        """Back to `context` tokens."""
        if not self.compiled:
            if self.cache.get_seq_length() > self.context:
                self.cache.crop(-self.steps)
            return
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    @torch.inference_mode()
    def seconds_per_step(self) -> float:
        token = torch.zeros(self.batch, 1, dtype=torch.long, device=self.model.device)
        _wait()
        began = time.perf_counter()
        for _ in range(self.steps):
            if self.compiled:
                torch.compiler.cudagraph_mark_step_begin()
            token = (
                self.call(input_ids=token, use_cache=True, **{self.cache_name: self.cache}).logits[:, -1:].argmax(-1)
            )
        _wait()
        seconds = (time.perf_counter() - began) / self.steps
        self._rewind()
        return seconds


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Transformers())
