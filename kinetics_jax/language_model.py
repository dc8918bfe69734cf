"""A loaded checkpoint as users hold it: logits, samples, text."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Bool
from kinetics_kernels.backends import Backend, backend_error

from kinetics_jax.attention.causal import full_attend_on
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.checkpoints.digest import FileStates, file_states, same_files, sampled_digest, weights_digest
from kinetics_jax.checkpoints.generation_config import Recommended, read_recommended
from kinetics_jax.checkpoints.loading import load_weights, open_config, warn_of_end_tokens
from kinetics_jax.checkpoints.resolve import Checkpoint, resolve
from kinetics_jax.config import DTYPES, ConfigError, ModelConfig
from kinetics_jax.engine.agreement import Agreement
from kinetics_jax.engine.draws import RuleArguments, asked_rules, asked_sampling
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.engine.open import Decoder, OpenSample
from kinetics_jax.engine.prompts import Count, Prompts, TokenRows, prompt_ids, prompt_list, token_array
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.engine.replays import NO_MESH, Replays
from kinetics_jax.engine.sampling import prompt_digest, prompt_name
from kinetics_jax.engine.speculative_decoding import Speculated
from kinetics_jax.errors import CheckpointError
from kinetics_jax.settings import EngineSettings, RequestError, Sampling, whole_number
from kinetics_jax.sharding.mesh import MeshLike, check_mesh, make_mesh, param_sharding, row_shards
from kinetics_jax.tokenizer import added_tokens, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_DEFAULT_SLOTS, OPEN_SLOTS = 32, 8
REPLAYED = ("agreement", "rounds")  # fields of a sample that no open decoder gives


@dataclasses.dataclass(frozen=True)
class Sample:
    """One generated sample. `problem` is the prompt's index; `output_tokens` are ids, the end token included;
    `text` is None when the checkpoint has no tokenizer; `seconds` is the time from its start to its end;
    `attended_tokens` and `summary_vectors` are what its decode steps read, over layers and KV heads. `id` is the
    prompt's name, which with the seed and `sample` fixes the draws. `stopped_by`, `log_probs` and `draw_log_probs` are
    as in `OpenSample`, `agreement` is that of the policy with dense attention, and `rounds` are the tokens that each
    round of speculation gave: None unless `generate` was asked for them.
    """

    problem: int
    sample: int
    prompt_tokens: int
    output_tokens: list[int]
    text: str | None
    finish_reason: str
    seconds: float
    attended_tokens: int
    summary_vectors: int
    id: str = ""
    stopped_by: str | int | None = None
    log_probs: list[float] | None = dataclasses.field(default=None, repr=False)
    draw_log_probs: list[float] | None = dataclasses.field(default=None, repr=False)
    agreement: Agreement | None = None
    rounds: tuple[int, ...] | None = None


@functools.partial(jax.jit, static_argnames=("graph",))
def _full_forward(graph: nnx.GraphDef, weights: nnx.State, tokens: jax.Array) -> jax.Array:
    model = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return model.logits(model(tokens, positions, full_attend_on(model.mesh))[0])


class LanguageModel(Replays):
    """A checkpoint's configuration, weights and (read when first needed) tokenizer. Made by `load`."""

    def __init__(
        self,
        config: ModelConfig,
        graph: nnx.GraphDef,
        weights: nnx.State,
        directory: Path,
        *,
        checkpoint: Checkpoint,
        backend: Backend | None = None,
        mesh: Mesh | None = None,
        add_special_tokens: bool = True,
        files: FileStates | None = None,
    ):
        """`directory` holds the tokenizer, `checkpoint` is where the weights, which lie on `mesh`, were read.

        `add_special_tokens` is what `encode` and `generate` do unless asked otherwise; `files`, in what state the files
        of the weights were when they were read.
        """
        self.mesh = mesh
        self.config, self.graph, self.weights, self.directory = config, graph, weights, directory
        self.checkpoint = checkpoint
        self.backend: Backend | None = backend
        self.add_special_tokens, self.files = add_special_tokens, files

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype that weights and KV cache are stored in."""
        return jax.tree.leaves(self.weights)[0].dtype

    @property
    def device(self) -> Any:
        """The `jax.Device` it computes on: the default one, or the first of its mesh."""
        return self.mesh.devices.flat[0] if self.mesh else jax.devices()[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells these weights from any others: a digest of every byte that is stored (checkpoints/digest.py).

        Raises CheckpointError if the files have changed since they were loaded.
        """
        self._check_unchanged()
        return weights_digest(self.checkpoint)

    @functools.cached_property
    def sampled_fingerprint(self) -> str:
        """What earlier versions took for `fingerprint`, to continue their run folders."""
        self._check_unchanged()
        return sampled_digest(self.checkpoint)

    def _check_unchanged(self) -> None:
        if self.files is not None and not same_files(file_states(self.checkpoint), self.files):
            raise CheckpointError(f"{self.checkpoint.path}: its files changed after it was loaded; load it again")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.json. Raises CheckpointError where it has none.

        Warns of end tokens that it does not know: a model that never saw them does not draw them.
        """
        tokenizer = read_tokenizer(self.directory, cure="without a tokenizer give prompts as lists of token ids")
        strange = [token for token in self.config.eos_token_ids if tokenizer.id_to_token(token) is None]
        if strange := [token for token in strange if token < self.config.vocab_size]:  # `load` tells of others
            warnings.warn(
                f"{self.config.name}: its tokenizer has no token {strange}, at which it is to end", stacklevel=3
            )
        return tokenizer

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text, with what the tokenizer adds by itself (of Llama types, a first token) if
        `add_special_tokens` (None: as the model was loaded). Texts of a chat template bring their own: say False.

        Raises RequestError for broken text. Warns of a text that begins with the first token twice.
        """
        if not isinstance(text, str):
            raise RequestError(f"encode: a prompt is a text, got {text!r:.40}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt {text!r:.60}: character {error.start} is not Unicode text") from error
        special = self.add_special_tokens if add_special_tokens is None else add_special_tokens
        ids = self.tokenizer.encode(text, add_special_tokens=special).ids
        if special and len(ids) > 1 and ids[0] == ids[1] and ids[:1] == self.added_tokens[0]:
            warnings.warn(
                f"a prompt begins with token {ids[0]} twice: its text has it already; add_special_tokens=False (or "
                f"--no-special-tokens) adds none",
                stacklevel=2,
            )
        return ids

    @functools.cached_property
    def added_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds by itself before and after a text."""
        return added_tokens(self.tokenizer)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def logits(self, token_ids: TokenRows, *, weights: nnx.State | None = None) -> jax.Array:
        """Full forward without a cache: `[batch, time]` int32 → `[batch, time, vocab]` float32.

        `weights` take the place of the model's own; by them it can be differentiated, under jit too. Raises
        RequestError for what is no array of token ids of the vocabulary.
        """
        tokens = token_array(token_ids, self.config.vocab_size)
        return _full_forward(self.graph, self.weights if weights is None else weights, tokens)

    def engine(
        self,
        *,
        sampling: Sampling,
        attention: AttentionPolicy | str = Dense(),
        settings: EngineSettings = EngineSettings(),
    ) -> Engine:
        """An engine over these weights, which yields samples as they finish; `generate` and runs are built on it."""
        return Engine(
            self.graph,
            self.weights,
            self.config,
            policy=attention,
            sampling=sampling,
            settings=settings,
            cache_dtype=self.dtype,
            backend=self.backend,
            mesh=self.mesh,
            known_ids=self.known_ids if sampling.known_ids_only else None,
        )

    def open(
        self,
        *,
        attention: AttentionPolicy | str = Dense(),
        sampling: Sampling | None = None,
        settings: EngineSettings | None = None,
        max_length: Count | None = None,
        keep: bool = True,
    ) -> Decoder:
        """An engine that stays open: requests are added while it runs, each with settings of its own, and samples can
        go on or fork after they ended (`Decoder`).

        `attention` is the policy of all requests; `sampling` is that of requests that bring none, by default as in
        `generate`. `settings` defaults to 8 slots. `max_length` bounds the tokens of a prompt and its output together;
        default: the model's positions, but at most 4096. `keep`: whether ended samples keep their pages until they are
        released. Raises RequestError for what cannot be run.
        """
        sampling = self._default_sampling() if sampling is None else asked_sampling(sampling, None, sampling)
        has_text = (self.directory / "tokenizer.json").exists()
        return Decoder(
            self.engine(
                sampling=dataclasses.replace(sampling, known_ids_only=False),
                attention=attention,
                settings=EngineSettings(slots=OPEN_SLOTS * row_shards(self.mesh)) if settings is None else settings,
            ),
            sampling=sampling,
            max_length=max_length,
            keep=keep,
            encode=self.encode,
            decode=self.decode if has_text else None,
            known=lambda: self.known_ids,
        )

    @functools.cached_property
    def recommended(self) -> Recommended | None:
        """How the checkpoint's generation_config.json recommends to sample it (`recommended.sampling(max_tokens=…)`);
        None where it does not. Raises CheckpointError for what cannot be.
        """
        return read_recommended(self.directory)

    def _default_sampling(self) -> Sampling:
        if self.recommended is None:
            return Sampling()
        warnings.warn(
            f"{self.config.name}: sampled as it recommends ({self.recommended.words}); sampling=kj.Sampling(…) says it "
            "otherwise",
            stacklevel=3,
        )
        return self.recommended.sampling()

    @functools.cached_property
    def known_ids(self) -> Bool[np.ndarray, " vocab"]:
        """Which ids a token of the tokenizer has, and the end tokens. Raises CheckpointError without a tokenizer."""
        ids = np.array([*self.tokenizer.get_vocab(with_added_tokens=True).values(), *self.config.eos_token_ids])
        known = np.zeros(self.config.vocab_size, bool)
        known[ids[ids < self.config.vocab_size]] = True
        return known

    def generate(
        self,
        prompts: Prompts,
        *,
        n: Count = 1,
        sampling: Sampling | None = None,
        attention: AttentionPolicy | str = Dense(),
        settings: EngineSettings | None = None,
        add_special_tokens: bool | None = None,
        agreement: bool = False,
        on_chunk: Callable[[int], None] = lambda tokens: None,
        **rules: Unpack[RuleArguments],
    ) -> list[Sample]:
        """Draws `n` samples of each prompt (a text, or token ids); returns them ordered by prompt and sample.

        Without `sampling` tokens are drawn as the checkpoint recommends, if it does, which a warning says, else as
        `Sampling()` has it. Of texts, `add_special_tokens` is as in `encode`; ids are taken as they are. `attention` is
        the policy that decodes, or its spelling. `settings` defaults to a slot per sample, at most 32 (on a mesh, on
        each shard of the sequences). `agreement`: whether samples get theirs with dense attention. `on_chunk` is called
        with the number of tokens that each decode chunk drew. `rules` are the fields of `DrawRules` (`stop=["\\n"]`,
        `log_probs=True`). The same call draws the same samples; a prompt draws by a digest of its tokens and how often
        it stood before in the call, so that other prompts, and a prompt with its output behind it, draw other noise.
        Raises RequestError for prompts that cannot fit, or that are neither texts nor token ids.
        """
        asked_rules(rules)  # refused before anything else
        sampling = self._default_sampling() if sampling is None else sampling
        n = whole_number(n, "generate: n", RequestError)
        if agreement and self.mesh is not None:
            raise RequestError(NO_MESH.format("agreement"))
        if n < 1:
            raise RequestError(f"generate: n must be at least 1, got {n}")
        vocab = self.config.vocab_size
        encoded = [
            self.encode(prompt, add_special_tokens=add_special_tokens)
            if isinstance(prompt, str)
            else prompt_ids(f"prompt {index}", prompt, vocab)
            for index, prompt in enumerate(prompt_list(prompts))
        ]
        names, seen = [], collections.Counter[str]()
        for digest in map(prompt_digest, encoded):
            names.append(prompt_name(digest, seen[digest]))
            seen[digest] += 1
        requests = [
            Request(name, prompt, range(n), label=f"prompt {index}")
            for index, (name, prompt) in enumerate(zip(names, encoded, strict=True))
        ]
        if settings is None:
            shards = row_shards(self.mesh)
            each = -(-n * len(requests) // shards)
            settings = EngineSettings(slots=shards * max(1, min(MAX_DEFAULT_SLOTS, each)))
        place = {name: index for index, name in enumerate(names)}
        samples: list[Sample] = []
        if rules and requests:
            job = self.engine(sampling=sampling, attention=attention, settings=settings).check(requests)
            longest = job.longest_prompt + sampling.max_tokens
            options: Any = {"attention": attention, "settings": settings, "max_length": longest, "keep": False}
            with self.open(sampling=sampling, **options) as decoder:
                for request in requests:
                    decoder.add(request.prompt, n=n, id=request.problem, **rules)
                while decoder.unfinished:
                    tokens = decoder.step()
                    samples += [_as_sample(done, place[done.id]) for done in decoder.ready()]
                    on_chunk(tokens)
            return self._compared(samples, encoded, attention, sampling.seed) if agreement else _in_order(samples)
        has_text = (self.directory / "tokenizer.json").exists()
        finished = self.engine(sampling=sampling, attention=attention, settings=settings).run(
            requests, on_chunk=on_chunk
        )
        samples += [
            Sample(
                problem=place[done.problem],
                sample=done.sample,
                prompt_tokens=done.prompt_tokens,
                output_tokens=done.output_tokens,
                text=self.decode(done.output_tokens) if has_text else None,
                finish_reason=done.finish_reason,
                seconds=done.seconds,
                id=done.problem,
                attended_tokens=done.attended_tokens,
                summary_vectors=done.summary_vectors,
                rounds=done.rounds if isinstance(done, Speculated) else None,
            )
            for done in finished
        ]
        return self._compared(samples, encoded, attention, sampling.seed) if agreement else _in_order(samples)

    def _compared(
        self, samples: list[Sample], prompts: list[list[int]], attention: AttentionPolicy | str, seed: int
    ) -> list[Sample]:
        """The samples in order, with their agreement."""
        samples = _in_order(samples)
        drawn = [Drawn(prompts[each.problem], each.output_tokens, each.id, each.sample) for each in samples]
        found = self.each_agreement(drawn, attention=attention, seed=seed)
        return [dataclasses.replace(each, agreement=own) for each, own in zip(samples, found, strict=True)]


def _in_order(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: (sample.problem, sample.sample))


def _as_sample(done: OpenSample, problem: int) -> Sample:
    """What `generate` returns of a decoder's sample."""
    names = {field.name for field in dataclasses.fields(Sample)} - {"problem", *REPLAYED}
    return Sample(problem=problem, **{name: getattr(done, name) for name in names})


def load(
    name: str | Path,
    *,
    dtype: DTypeLike | None = None,
    backend: str | None = None,
    mesh: MeshLike | None = None,
    add_special_tokens: bool = True,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> LanguageModel:
    """Loads a checkpoint: a built-in name, a Hugging Face or Orbax directory, a GGUF file, or a hub id.

    `dtype` (float32, bfloat16, float16) is what weights and cache are stored in; default: bfloat16 on an accelerator,
    float32 on a CPU. `backend` forces the kernels' backend (xla, triton, mosaic_gpu, mosaic_tpu; default: what suits
    the device). `mesh` spreads model, cache and sequences over several devices: "data=2,tensor=4", a mapping, or a
    `jax.sharding.Mesh` (`sharding.make_mesh`); each device reads its own part of the weights.
    `add_special_tokens`: whether texts get what the tokenizer adds by itself (`LanguageModel.encode`). Raises
    CheckpointError, ConfigError or MeshError saying what is wrong and where; warns of end tokens that are never drawn.
    """
    devices = None if mesh is None else make_mesh(mesh)
    checkpoint = resolve(name)
    if backend is not None and (wrong := backend_error(backend)):
        raise ConfigError(wrong)
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    stored = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if stored not in DTYPES:
        raise ConfigError(f"dtype {stored} is not one of {', '.join(DTYPES)}")
    with contextlib.ExitStack() as made:
        config, directory = made.enter_context(open_config(checkpoint))
        warn_of_end_tokens(config, directory)
        files = file_states(checkpoint)
        placement = None
        if devices is not None:
            check_mesh(devices, config)
            placement = param_sharding(config, devices)
        graph, weights = load_weights(
            checkpoint, config, dtype=jnp.dtype(stored), sharding=placement, mesh=devices, on_tensor=on_tensor
        )
        lm = LanguageModel(
            config,
            graph,
            weights,
            directory,
            checkpoint=checkpoint,
            backend=cast(Backend | None, backend),
            mesh=devices,
            add_special_tokens=add_special_tokens,
            files=files,
        )
        weakref.finalize(lm, made.pop_all().close)  # what was made of a GGUF file lives as long as the model
    return lm
