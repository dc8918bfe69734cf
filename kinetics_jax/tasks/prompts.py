r"""From a problem to the text a model reads.

A chat template writes its own special tokens, so that nothing is added to its text; to others the tokenizer adds what
it adds by itself (`adds_special_tokens`). A question that itself spells a special token (`<|im_end|>`) becomes that
token, as in every use of the model's own chat template; the text is kept as given, since another text would be another
problem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.errors import UserError, shown
from kinetics_jax.files import open_regular, read_json, read_regular
from kinetics_jax.tasks.chat_template import RenderedTemplate, TemplateError
from kinetics_jax.tasks.choice_grading import LETTERS
from kinetics_jax.tasks.problems import PACKAGED, Problem, problem_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "plain", "bare")
SETTINGS = "tokenizer_config.json"
TEMPLATE_BYTES, SETTINGS_BYTES, TOKENIZER_BYTES = 4 << 20, 64 << 20, 512 << 20
READ_SUFFIXES = (".json", ".jinja", ".txt", ".model")
INSTRUCTION = "Think it through step by step, and give the final answer inside \\boxed{}."
CHOICE_INSTRUCTION = "Think it through step by step, and give the letter of the right choice inside \\boxed{}."
# Of the published code (LiteSys/examples/eval_math.py of Infini-AI-Lab/Kinetics), before the question; two spaces too.
PAPER_INSTRUCTION = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
    "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
    "where ANSWER is just the final number or expression that solves the problem. Think step by step before answering."
)
PAPER = "paper"  # its name
MAX_TEMPLATE = 1 << 20  # bytes of a prompt template


class PromptError(UserError):
    """A prompt style that the model does not support; the message names the checkpoint and what it has."""


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """How problems are put to a model.

    `template`: `chat` (question and instruction as a user's turn in the checkpoint's chat template), `plain` (both as
    bare text), `bare` (the question alone), or `auto`: bare for the package's own tasks, else chat where the
    checkpoint has a chat template, else plain. `thinking=False` is for chat templates that can turn it off, as Qwen3's;
    it is refused where it would change nothing.

    `instruction` is what follows the question in chat and plain prompts (None: the package's own; empty: nothing);
    `paper` is the paper's, which stands before the question. `system` is the system turn of a chat. `file` is a jinja2
    template that writes question and instruction its own way, of `question`, `instruction`, `choices`, `id` and the
    other columns of a problem (also as `problem`): a user's turn in a chat, else the whole text.
    """

    template: str = "auto"
    thinking: bool = True
    instruction: str | None = None
    system: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise PromptError(f"prompt template {self.template!r} is not known (known: {', '.join(TEMPLATES)})")


def render_prompts(
    problems: Sequence[Problem], directory: str | Path, *, task: str, style: PromptStyle = PromptStyle()
) -> dict[str, str]:
    """The text of every problem by its id, for the checkpoint in `directory`.

    Raises PromptError if `chat` is asked for and the checkpoint has no chat template, or one that cannot be read or
    rendered, and if thinking is to be turned off and cannot be, by the chat template or for want of one.
    """
    template = chosen_template(directory, task, style)
    if not style.thinking and template != "chat":
        raise PromptError(
            f"{directory}: thinking can be turned off in a chat template only, and prompts are {template}"
        )
    if style.system is not None and template != "chat":
        raise PromptError(f"{directory}: a system text stands in a chat template only, and prompts are {template}")
    if style.instruction is not None and template == "bare" and style.file is None:
        raise PromptError("bare prompts are the question alone, without an instruction; take --template plain or chat")
    chat = ChatTemplate(directory, style.thinking, system=style.system) if template == "chat" else None
    if style.file is not None:
        texts = render_file(problems, style.file, style.instruction)
        return {name: chat.user_turn(text) if chat else text for name, text in texts.items()}
    return {problem.id: render_prompt(problem, template, chat, style.instruction) for problem in problems}


def prompt_identity(style: PromptStyle, directory: str | Path, task: str) -> dict[str, Any]:
    """What run.json says of a style: the form, and what was asked for beside it."""
    said: dict[str, Any] = {"template": chosen_template(directory, task, style)}
    said |= {} if style.instruction is None else {"instruction": style.instruction}
    said |= {} if style.system is None else {"system": style.system}
    if style.file is not None:
        digest = hashlib.blake2b(_template_text(style.file).encode(), digest_size=8).hexdigest()
        said["prompt_template"] = {"file": style.file.name, "digest": digest}
    return said


def chosen_template(directory: str | Path, task: str, style: PromptStyle = PromptStyle()) -> str:
    """chat, plain or bare: what a style comes to for the checkpoint in `directory`."""
    if style.template != "auto":
        return style.template
    return "bare" if task in PACKAGED else "chat" if has_chat_template(directory) else "plain"


def adds_special_tokens(directory: str | Path, task: str, style: PromptStyle = PromptStyle()) -> bool:
    """Whether the tokenizer adds its special tokens to such prompts: not where a chat template writes its own."""
    return chosen_template(directory, task, style) != "chat"


def render_prompt(
    problem: Problem, template: str = "bare", chat: ChatTemplate | None = None, instruction: str | None = None
) -> str:
    """One problem's text: `bare`, `plain`, or `chat` in the given template."""
    posed = problem.question
    if problem.choices:
        posed += "\n\n" + "\n".join(
            f"{letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)
        )
    if template == "bare":
        return posed
    if instruction == PAPER:
        instructed = f"{PAPER_INSTRUCTION}\n\n{posed}"
    else:
        instructed = "\n\n".join(filter(None, (posed, _instruction(problem, instruction))))
    return chat.user_turn(instructed) if chat else f"{instructed}\n\n"


def _instruction(problem: Problem, given: str | None) -> str:
    if given is None:
        return CHOICE_INSTRUCTION if problem.choices else INSTRUCTION
    return PAPER_INSTRUCTION if given == PAPER else given


def render_file(problems: Sequence[Problem], file: Path, instruction: str | None = None) -> dict[str, str]:
    """What a prompt template writes of every problem, by id. A name that a problem lacks is a fault, no empty text.

    Raises PromptError naming the file for one that cannot be read, fails, writes nothing, or writes the same for
    different questions.
    """
    source = _template_text(file)
    if instruction is not None and "instruction" not in source:
        raise PromptError(
            f"{file}: has no {{{{ instruction }}}}, so that --instruction would change nothing; leave it out"
        )
    written: dict[str, str] = {}
    first: dict[str, Problem] = {}
    try:
        template = RenderedTemplate(source, strict=True)
    except TemplateError as error:
        raise PromptError(f"{file}: is no jinja2 template that can be read ({error})") from error
    for problem in problems:
        fields = {
            name: value
            for name, value in problem_fields(problem.stored("")).items()
            if name not in ("answer", "prompt")
        }
        fields |= {"choices": list(problem.choices), "instruction": _instruction(problem, instruction)}
        try:
            text = template.render(
                **{name: value for name, value in fields.items() if name != "self"} | {"problem": fields}
            )
        except TemplateError as error:
            raise PromptError(f"{file}: fails for problem {problem.id!r:.60} ({error})") from error
        if not text.strip():
            raise PromptError(f"{file}: writes nothing for problem {problem.id!r:.60}")
        other = first.setdefault(text, problem)
        if other.question != problem.question:
            raise PromptError(
                f"{file}: writes the same for problems {other.id!r:.60} and {problem.id!r:.60}; put {{{{ question }}}} "
                "into it"
            )
        written[problem.id] = text
    return written


def _template_text(file: Path) -> str:
    try:
        return read_regular(file, at_most=MAX_TEMPLATE, error=PromptError).decode("utf-8")
    except FileNotFoundError as error:
        raise PromptError(f"{file}: no such file; --prompt-template takes a jinja2 template") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: not UTF-8 text (byte {error.start})") from error


def has_chat_template(directory: str | Path) -> bool:
    """Whether a checkpoint's tokenizer comes with a chat template that is not empty.

    It stands in chat_template.jinja, which goes before what tokenizer_config.json has. A chat_template.json is for
    processors of images and sound, and no tokenizer reads it.
    """
    own, path = Path(directory) / "chat_template.jinja", Path(directory) / SETTINGS
    try:
        template = read_regular(own, at_most=TEMPLATE_BYTES, error=PromptError).decode()
    except FileNotFoundError:
        template = _settings(path).get("chat_template")
    except UnicodeDecodeError as error:
        raise PromptError(f"{own}: not UTF-8 text (byte {error.start})") from error
    return bool(template.strip() if isinstance(template, str) else template)


def _settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none."""
    try:
        return read_json(path, at_most=SETTINGS_BYTES, error=PromptError)
    except FileNotFoundError:
        return {}
    except PromptError as error:
        raise PromptError(f"{path}: not a JSON object ({str(error).removeprefix(f'{path}: ')})") from error


class ChatTemplate:
    """The chat template of the checkpoint in `directory`, rendered in a process of its own, with the special tokens
    that transformers (which needs no torch for it) finds.
    """

    def __init__(self, directory: str | Path, thinking: bool, *, system: str | None = None):
        if not has_chat_template(directory):
            raise PromptError(f"{directory}: the checkpoint has no chat template; take plain prompts instead")
        self.directory, self.thinking, self.system = Path(directory), thinking, system
        for path in sorted(self.directory.iterdir()):  # what transformers may read, and wait for
            if path.suffix in READ_SUFFIXES and os.path.exists(path):
                open_regular(path, at_most=TOKENIZER_BYTES, error=PromptError).close()
        tokenizer = _load_tokenizer(self.directory)
        try:
            self.special_tokens = json.loads(json.dumps(tokenizer.special_tokens_map, default=str))
            self.template = RenderedTemplate(tokenizer.get_chat_template())
        except (
            Exception
        ) as error:  # transformers', of several templates of which none is the default, or the template's
            raise self._failure(error) from error
        if not thinking and (rendered := self._render("?", False)) == self._render("?", True):
            reason = "always opens the reasoning" if "<think>" in rendered else "knows no such choice"
            raise PromptError(f"{directory}: thinking cannot be turned off: its chat template {reason}")
        if system is not None and " ".join(system.split()) not in " ".join(self._render("?", thinking).split()):
            raise PromptError(f"{directory}: its chat template has no place for a system text")

    def user_turn(self, text: str) -> str:
        """The text as a user's only turn, and the beginning of the model's."""
        return self._render(text, self.thinking)

    def _render(self, text: str, thinking: bool) -> str:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        variables = {
            **self.special_tokens,
            "messages": [*system, {"role": "user", "content": text}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "enable_thinking": thinking,
        }
        try:
            return self.template.render(**variables)
        except TemplateError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> PromptError:
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        return PromptError(f"{self.directory}: its chat template fails ({kind}{' '.join(str(error).split())[:200]})")


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    with _no_warnings():  # transformers warns that torch is not installed
        from transformers import AutoTokenizer
    try:
        # Without trust_remote_code=False it asks on the terminal whether to run a checkpoint's code.
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error).splitlines() or [""])[0]
        raise PromptError(
            f"{directory}: its tokenizer cannot be read ({type(error).__name__}: {shown(reason, 300)})"
        ) from error


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
