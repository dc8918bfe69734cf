r"""From a problem to the text a model reads. No jax.

A text is tokenised as it stands, with nothing added: a chat template writes its own special tokens. A question that
itself spells a special token (`<|im_end|>`) becomes that token, as in every use of the model's own chat template; the
text is kept as given, since another text would be another problem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_jax.errors import UserError
from kinetics_jax.tasks.problems import BUILTIN, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "plain", "bare")
INSTRUCTION = "Think it through step by step, and give the final answer inside \\boxed{}."


class PromptError(UserError):
    """A way of putting problems that the model at hand does not have."""


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """How problems are put to a model.

    `template`: `chat` (question and instruction as a user's turn in the checkpoint's chat template), `plain` (both as
    bare text), `bare` (the question alone), or `auto`: bare for the built-in task, else chat where the checkpoint has a
    chat template, else plain. `thinking` goes to chat templates that can turn it off, as Qwen3's.
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

    Raises PromptError where `chat` is asked for and the checkpoint has no chat template, or one that cannot be read or
    that knows no way to turn thinking off.
    """
    template = style.template
    if template == "auto":
        template = "bare" if task == BUILTIN else "chat" if has_chat_template(directory) else "plain"
    chat = ChatTemplate(directory, style.thinking) if template == "chat" else None
    return {problem.id: render_prompt(problem, template, chat) for problem in problems}


def render_prompt(problem: Problem, template: str = "bare", chat: ChatTemplate | None = None) -> str:
    """One problem's text: `bare`, `plain`, or `chat` in the given template."""
    if template == "bare":
        return problem.question
    instructed = f"{problem.question}\n\n{INSTRUCTION}"
    return chat.user_turn(instructed) if chat else f"{instructed}\n\n"


def has_chat_template(directory: str | Path) -> bool:
    """Whether a checkpoint comes with a chat template, in a file of its own or in its tokenizer_config.json."""
    directory = Path(directory)
    if any((directory / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise PromptError(f"{path}: not a JSON object ({error})") from error


class ChatTemplate:
    """The chat template of the checkpoint in `directory`, rendered by transformers (which needs no torch for it)."""

    def __init__(self, directory: str | Path, thinking: bool):
        if not has_chat_template(directory):
            raise PromptError(f"{directory}: the checkpoint has no chat template; take plain prompts instead")
        self.directory, self.thinking = Path(directory), thinking
        self.tokenizer = _load_tokenizer(self.directory)
        if (
            not thinking
            and self._render("?", False) == self._render("?", True)
            and "<think>" in self._render("?", True)
        ):
            raise PromptError(
                f"{directory}: its chat template always opens the reasoning; thinking cannot be turned off"
            )

    def user_turn(self, text: str) -> str:
        """The text as a user's only turn, and the beginning of the model's."""
        return self._render(text, self.thinking)

    def _render(self, text: str, thinking: bool) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
        except (TemplateError, TypeError, ValueError) as error:  # what templates raise, and what is wrong in them
            raise PromptError(f"{self.directory}: its chat template fails ({type(error).__name__}: {error})") from error
        assert isinstance(rendered, str)
        return rendered


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    with _no_warnings():  # that there is no torch
        from transformers import AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error).splitlines() or [""])[0]
        raise PromptError(f"{directory}: its tokenizer cannot be read ({type(error).__name__}: {reason})") from error


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
