r"""From a problem to the text a model reads.

A chat template writes its own special tokens, so that nothing is added to its text; to others the tokenizer adds what
it adds by itself (`adds_special_tokens`). A question that itself spells a special token (`<|im_end|>`) becomes that
token, as in every use of the model's own chat template; the text is kept as given, since another text would be another
problem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.errors import UserError, shown
from kinetics_jax.files import open_regular, read_json, read_regular
from kinetics_jax.tasks.chat_template import RenderedTemplate, TemplateError
from kinetics_jax.tasks.problems import PACKAGED, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "plain", "bare")
SETTINGS = "tokenizer_config.json"
TEMPLATE_BYTES, SETTINGS_BYTES, TOKENIZER_BYTES = 4 << 20, 64 << 20, 512 << 20
READ_SUFFIXES = (".json", ".jinja", ".txt", ".model")
INSTRUCTION = "Think it through step by step, and give the final answer inside \\boxed{}."


class PromptError(UserError):
    """A prompt style that the model does not support; the message names the checkpoint and what it has."""


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """How problems are put to a model.

    `template`: `chat` (question and instruction as a user's turn in the checkpoint's chat template), `plain` (both as
    bare text), `bare` (the question alone), or `auto`: bare for the package's own tasks, else chat where the
    checkpoint has a chat template, else plain. `thinking=False` is for chat templates that can turn it off, as Qwen3's;
    it is refused where it would change nothing.
    """

    template: str = "auto"
    thinking: bool = True

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
    chat = ChatTemplate(directory, style.thinking) if template == "chat" else None
    return {problem.id: render_prompt(problem, template, chat) for problem in problems}


def chosen_template(directory: str | Path, task: str, style: PromptStyle = PromptStyle()) -> str:
    """chat, plain or bare: what a style comes to for the checkpoint in `directory`."""
    if style.template != "auto":
        return style.template
    return "bare" if task in PACKAGED else "chat" if has_chat_template(directory) else "plain"


def adds_special_tokens(directory: str | Path, task: str, style: PromptStyle = PromptStyle()) -> bool:
    """Whether the tokenizer adds its special tokens to such prompts: not where a chat template writes its own."""
    return chosen_template(directory, task, style) != "chat"


def render_prompt(problem: Problem, template: str = "bare", chat: ChatTemplate | None = None) -> str:
    """One problem's text: `bare`, `plain`, or `chat` in the given template."""
    if template == "bare":
        return problem.question
    instructed = f"{problem.question}\n\n{INSTRUCTION}"
    return chat.user_turn(instructed) if chat else f"{instructed}\n\n"


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

    def __init__(self, directory: str | Path, thinking: bool):
        if not has_chat_template(directory):
            raise PromptError(f"{directory}: the checkpoint has no chat template; take plain prompts instead")
        self.directory, self.thinking = Path(directory), thinking
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

    def user_turn(self, text: str) -> str:
        """The text as a user's only turn, and the beginning of the model's."""
        return self._render(text, self.thinking)

    def _render(self, text: str, thinking: bool) -> str:
        variables = {
            **self.special_tokens,
            "messages": [{"role": "user", "content": text}],
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
