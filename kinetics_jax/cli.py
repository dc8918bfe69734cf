"""The `kinetics` command: what users type and read. Heavy imports wait until a command needs them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.commands.calibrate import calibrate
from kinetics_jax.commands.cost import cost
from kinetics_jax.commands.doctor import doctor
from kinetics_jax.commands.frontier import frontier
from kinetics_jax.commands.grade import grade, run_summary, run_totals
from kinetics_jax.commands.plan import plan
from kinetics_jax.errors import UserError
from kinetics_jax.mesh_axes import mesh_sizes
from kinetics_jax.policies import Sampling, parse_policy
from kinetics_jax.tasks.problems import BUILTIN, load_problem_file, load_problems
from kinetics_jax.tasks.prompts import ChatTemplate, PromptStyle, render_prompts
from kinetics_jax.terminal import command_line, print_table, sample_bar, tensor_bar, warm_up_report

if TYPE_CHECKING:
    from kinetics_jax.language_model import LanguageModel

Positional = tyro.conf.Positional
MOST_SAMPLES = 10**6  # of a problem

ModelArg = Annotated[
    str, tyro.conf.arg(metavar="MODEL", help="Built-in name, Hugging Face or Orbax directory, GGUF file, or hub id.")
]
AttentionArg = Annotated[
    str, tyro.conf.arg(metavar="POLICY", help="dense, or block_topk:budget=1024,page_size=16 (see the README).")
]

BackendArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME",
        help="Forces the kernels' backend: xla, triton, mosaic_gpu, mosaic_tpu; by default as `kinetics doctor` says.",
    ),
]
CompileCacheArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="DIR|off",
        help="Where compiled programs are kept for the next process; by default as jax is set, else in the user's "
        "cache directory.",
    ),
]
MeshArg = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="AXES",
        help="Spreads the model over several devices: data=2,tensor=4, with expert=… for a mixture of experts.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Draw:
    """How tokens are drawn: the flags of every command that samples."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the most likely tokens that together weigh this much."""
    top_k: int = 0
    """Keep this many tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely, relative to the likeliest."""
    max_tokens: int | None = None
    """Most tokens of a sample; by default 1024, or as many as the model has positions for."""
    seed: int = 0
    """Another seed draws other samples."""
    repetition_window: int = 0
    """End a sample when its last so many tokens repeat, at least thrice over; 0 never does."""

    def check(self) -> None:
        """Refuses impossible values before a model is loaded."""
        Sampling(**{name: value for name, value in dataclasses.asdict(self).items() if value is not None})

    def sampling(self, lm: LanguageModel, prompts: list[str]) -> Sampling:
        """The sampling asked for, by default with as many tokens as fit behind the longest prompt."""
        given = dataclasses.asdict(self)
        if self.max_tokens is None:
            longest = max(len(lm.encode(prompt)) for prompt in prompts)
            room = max(1, lm.config.max_position_embeddings - longest)
            given["max_tokens"] = min(Sampling.max_tokens, room)
        return Sampling(**given)


DrawArgs = tyro.conf.OmitArgPrefixes[Draw]
DEFAULT_DRAW = Draw()


def sample(
    model: Positional[ModelArg],
    *,
    out: Path,
    task: str | None = None,
    problems: Path | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
    template: Literal["auto", "chat", "plain", "bare"] = "auto",
    thinking: bool = True,
    n: int = 8,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    slots: int = 32,
    chunk: int = 32,
    num_pages: int | None = None,
    shared_prefix: Literal["auto", "on", "off"] = "auto",
    dtype: str | None = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Best-of-N: n graded samples of every problem of a task, into a run folder that the same command continues.

    Args:
        out: Run folder (new, or one that this command began).
        task: Problem set: builtin (the default), aime24, aime25, amc23, math500 or gsm8k.
        problems: Problems from a file instead: .jsonl, .json, .csv or .parquet.
        question_column: The file's column of questions, where its name does not tell.
        answer_column: The file's column of answers, where its name does not tell.
        limit: Only the first so many problems.
        template: How questions are put: chat (the checkpoint's chat template), plain, bare, or what suits (auto).
        thinking: Whether a chat template that knows the difference lets the model think first.
        n: Samples of each problem.
        slots: Sequences decoded side by side.
        chunk: Decode steps between two looks of the host.
        num_pages: KV pages in the pool; by default enough for the longest sample in every slot.
        shared_prefix: Whether dense layers read a prompt's KV once for all its samples; auto: where it pays.
        dtype: float32, bfloat16 or float16; by default what the device likes.
        as_json: Print the totals as JSON, with what was compiled.
    """
    policy = parse_policy(attention)
    draw.check()
    style = PromptStyle(template, thinking)
    _at_least_one("n", n)
    if problems is None:
        if question_column or answer_column:
            raise UserError("--question-column and --answer-column go with --problems FILE")
        name = task or BUILTIN
        chosen = load_problems(name, limit=limit)
    elif task is None:
        name = problems.name  # with its ending: never the name of a task
        chosen = load_problem_file(problems, question_column=question_column, answer_column=answer_column, limit=limit)
    else:
        raise UserError("give --task or --problems, not both")
    lm = _load(model, dtype, backend, mesh, compile_cache)
    prompts = render_prompts(chosen, lm.directory, task=name, style=style)
    sampling = draw.sampling(lm, list(prompts.values()))
    from kinetics_jax.compile_cache import watch_compiles
    from kinetics_jax.runs import best_of_n
    from kinetics_jax.settings import EngineSettings

    with watch_compiles() as compiled, sample_bar(f"{lm.config.name} {policy}") as on_progress:
        run = best_of_n(
            lm,
            chosen,
            task=name,
            n=n,
            policy=policy,
            sampling=sampling,
            out=out,
            prompts=prompts,
            settings=EngineSettings(
                slots=slots,
                chunk=chunk,
                num_pages=num_pages,
                shared_prefix=None if shared_prefix == "auto" else shared_prefix == "on",
            ),
            command=command_line(),
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps({"out": str(out), **run_totals(run), "compiled": compiled.record()}, indent=1))
    else:
        print(f"{out}: {run_summary(run)}")


def convert(
    source: Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]],
    target: Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]],
    *,
    to: Literal["hf", "orbax"] | None = None,
    dtype: str | None = None,
) -> None:
    """One checkpoint layout to another: Hugging Face or GGUF to Orbax, Orbax to Hugging Face.

    Args:
        source: Built-in name, Hugging Face or Orbax directory, GGUF file, or hub id.
        target: A new directory.
        to: The layout written; by default the other one.
        dtype: float32, bfloat16 or float16; by default every weight keeps its own (quantised ones: float32).
    """
    resolve(source)  # a wrong name is told before jax is imported
    from kinetics_jax.checkpoints.convert import convert as convert_checkpoint

    with tensor_bar(f"convert {source}") as on_tensor:
        written = convert_checkpoint(source, target, to=to, dtype=dtype, on_tensor=on_tensor)
    print(written)


def demo(
    *,
    out: Path = Path("demo"),
    quick: bool = False,
    seed: int = 0,
    compile_cache: CompileCacheArg = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Everything on the built-in models: sample densely and sparsely, grade, cost, frontier, report.html.

    Args:
        out: Folder for the runs, frontier.csv, the figures and report.html; an interrupted demo continues there.
        quick: A smaller grid.
        seed: Another seed draws other samples.
        as_json: Print the frontier as JSON.
    """
    from kinetics_jax.compile_cache import use_compile_cache
    from kinetics_jax.demo import run_demo

    use_compile_cache(compile_cache)
    table = run_demo(out, quick=quick, seed=seed, bar=sample_bar)
    print_table(table, as_json)
    print(f"report: {out / 'report.html'}", file=sys.stderr if as_json else sys.stdout)


def generate(
    model: Positional[ModelArg],
    *,
    prompt: str,
    chat: bool = False,
    n: int = 1,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    dtype: str | None = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """n samples of one prompt, to the terminal.

    Args:
        prompt: Text, tokenised as it stands.
        chat: Put the text as a user's turn in the checkpoint's chat template.
        n: Number of samples.
        dtype: float32, bfloat16 or float16; by default what the device likes.
        as_json: One JSON record a sample.
    """
    policy = parse_policy(attention)
    draw.check()
    _at_least_one("n", n)
    lm = _load(model, dtype, backend, mesh, compile_cache)
    if chat:
        prompt = ChatTemplate(lm.directory, thinking=True).user_turn(prompt)
    sampling = draw.sampling(lm, [prompt])
    with warm_up_report() as on_chunk:
        samples = lm.generate([prompt], n=n, sampling=sampling, attention=policy, on_chunk=on_chunk)
    for drawn in samples:
        if as_json:
            print(json.dumps(dataclasses.asdict(drawn), ensure_ascii=False))
        else:
            print(f"[{drawn.sample}] {len(drawn.output_tokens)} tokens, {drawn.finish_reason}\n{drawn.text}\n")


def _at_least_one(name: str, value: int) -> None:
    if not 1 <= value <= MOST_SAMPLES:
        raise UserError(f"--{name} must be at least 1 and at most {MOST_SAMPLES}, got {value}")


def _load(
    model: str, dtype: str | None, backend: str | None, mesh: str | None, compile_cache: str | None
) -> LanguageModel:
    """Loads a checkpoint with a progress bar, the compilation cache turned on."""
    if mesh is not None:
        mesh_sizes(mesh)
    resolve(model)  # a wrong mesh or name is told before jax is imported
    from kinetics_jax.compile_cache import use_compile_cache
    from kinetics_jax.language_model import load

    use_compile_cache(compile_cache)
    with tensor_bar(f"load {model}") as on_tensor:
        return load(model, dtype=dtype, backend=backend, mesh=mesh, on_tensor=on_tensor)


def main() -> None:
    """Entry point: exit code 2 and one line for a user's mistake, 130 when interrupted."""
    warnings.showwarning = lambda message, *_, **__: print(f"kinetics: {message}", file=sys.stderr)
    commands = {
        command.__name__: command
        for command in (demo, sample, grade, cost, frontier, plan, calibrate, generate, convert, doctor)
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="kinetics",
            description="Which model, how many samples, how sparse an attention: sampled, graded, costed.",
        )
    except UserError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = str(error.filename or "").removesuffix(".partial")  # as the user knows it
        sys.exit(_fail(f"{name}: {error.strerror}" if name else str(error)))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on the way out already
        print("kinetics: stopped; a run keeps what it has finished, and the same command continues it", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> int:
    print(f"kinetics: {message}", file=sys.stderr)
    return 2
