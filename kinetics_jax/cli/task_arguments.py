"""Flags that say what is asked and who grades: of `sample`, and in part of `grade`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kinetics_jax.cli.checks import require
from kinetics_jax.tasks.own_functions import SECONDS

if TYPE_CHECKING:
    from kinetics_jax.tasks.graders import Grading
    from kinetics_jax.tasks.problems import Problem
    from kinetics_jax.tasks.prompts import PromptStyle

MAX_SEED = 2**63


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which problems, and how they are put to a model."""

    task: str | None = None
    """Problem set: builtin (the default), ledger, route, aime24, aime25, amc23, math500 or gsm8k."""
    problems: Path | None = None
    """Problems from a file instead: .jsonl, .json, .csv or .parquet."""
    question_column: str | None = None
    """The file's column of questions, if it is not called by a usual name."""
    answer_column: str | None = None
    """The file's column of answers, if it is not called by a usual name."""
    choices: bool = False
    """The file's problems are multiple choice: the letter of a choice is graded."""
    choice_columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN …")] = ()
    """The file's columns of choices, one of lists or one for each, if they are not called by usual names."""
    shuffle_choices: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Put each problem's choices in another order, by this seed; default: as they stand."""
    limit: int | None = None
    """Use only the first N problems."""
    skip_unreadable: bool = False
    """Leave out problems whose known answer cannot be graded, instead of refusing them all."""
    template: Literal["auto", "chat", "plain", "bare"] = "auto"
    """Form of a prompt: chat (the checkpoint's chat template), plain, bare, or auto."""
    thinking: bool = True
    """Whether the model thinks first, if its chat template has that switch."""
    instruction: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What follows the question, instead of the package's own instruction; empty: nothing; paper: the paper's, which
    stands before it."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The system turn of a chat."""
    prompt_template: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A jinja2 file that writes question and instruction: {{ question }}, {{ instruction }}, {{ choices }} and the
    problem's other columns."""

    def check(self) -> None:
        """Raises UserError for flags that do not go together, before anything is read."""
        file = self.problems is not None
        require(
            file or not (self.question_column or self.answer_column),
            "--question-column and --answer-column go with --problems FILE",
        )
        require(not file or self.task is None, "give --task or --problems, not both")
        require(
            self.choices or not (self.choice_columns or self.shuffle_choices is not None),
            "--choice-columns and --shuffle-choices go with --choices",
        )
        require(file or not self.choices, "--choices goes with --problems FILE")
        require(
            self.shuffle_choices is None or 0 <= self.shuffle_choices < MAX_SEED,
            f"--shuffle-choices must be at least 0 and below 2**63, got {self.shuffle_choices}",
        )

    @property
    def style(self) -> PromptStyle:
        """The form of the prompts. Raises PromptError."""
        from kinetics_jax.tasks.prompts import PromptStyle

        return PromptStyle(self.template, self.thinking, self.instruction, self.system, self.prompt_template)

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json says of the choices."""
        return {} if self.shuffle_choices is None else {"shuffled_choices": self.shuffle_choices}

    def load(self, grading: Grading) -> tuple[str, list[Problem]]:
        """The task's name and its problems, those that can be graded."""
        from kinetics_jax.tasks.choices import Choices, load_choice_file
        from kinetics_jax.tasks.graders import gradable_problems
        from kinetics_jax.tasks.own_functions import OwnFunction
        from kinetics_jax.tasks.problems import BUILTIN, load_problem_file, load_problems

        if self.problems is None:
            name = self.task or BUILTIN
            chosen = load_problems(name, limit=self.limit)
        else:
            name = self.problems.name  # with its ending: never the name of a task
            columns = {"question_column": self.question_column, "answer_column": self.answer_column}
            if self.choices:
                how = Choices(self.choice_columns, self.shuffle_choices)
                chosen = load_choice_file(self.problems, how, **columns, limit=self.limit)
            else:
                needed = not isinstance(grading.grader, OwnFunction)
                chosen = load_problem_file(self.problems, **columns, limit=self.limit, needs_answers=needed)
        return name, gradable_problems(chosen, name, grading, skip_unreadable=self.skip_unreadable)


AskedArgs = tyro.conf.OmitArgPrefixes[Asked]
DEFAULT_ASKED = Asked()


@dataclasses.dataclass(frozen=True)
class Judged:
    """Who grades and scores: flags of `sample` and `grade`."""

    grader: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Your own grader, module:function or file.py:function; or math or choice. Default: as the task is graded."""
    score: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Your own verifier or judge, which returns a number for each sample."""
    grader_seconds: float = SECONDS
    """What a call of your own grader or verifier may take."""

    def check(self) -> None:
        """Raises UserError for impossible values."""
        require(0 < self.grader_seconds <= 86_400, f"--grader-seconds must be in 0 … 86400, got {self.grader_seconds}")
        require(
            self.grader_seconds == SECONDS or self.score is not None or ":" in (self.grader or ""),
            "--grader-seconds goes with a function of your own (--grader, --score)",
        )

    @property
    def grading(self) -> Grading:
        """Raises FunctionError for a function that is not found."""
        from kinetics_jax.tasks.graders import grading

        return grading(self.grader, self.score, seconds=self.grader_seconds)


JudgedArgs = tyro.conf.OmitArgPrefixes[Judged]
DEFAULT_JUDGED = Judged()
