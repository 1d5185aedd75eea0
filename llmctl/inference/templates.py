"""Prompt templates: a row of a table as a question, with solved ones before it as examples
(Brown et al. 2020, "few-shot").

A template is a small TOML file. ``input`` is the question and ``target`` what answers it, Jinja2
templates of a row's columns; of the row that is asked, the target is left out:

    input = "Review: {{ text }}\\nSentiment:"
    target = " {{ label }}"              # also the default
    separator = "\\n\\n"                   # between examples; also the default
    instruction = "Classify the review." # before them all; by default nothing
    prior = "Sentiment:"                 # what the answer alone stands behind, for its prior

    [verbalizer]                         # how a label is written; by default as it is
    0 = "negative"
    1 = "positive"

Where the input has ``{{ mask }}`` it is a cloze for a masked language model: the label's word
stands there (Schick and Schütze 2021). A short template may be written out instead of a file:
``Topic: {mask}. {text}``.

Beside a file's own columns there are ``text`` and ``text_pair``, the columns that hold them by
whatever name, and in the target ``label``, as the verbalizer writes it. ``prior`` is by default
what the input ends with behind its last field. Nothing is added between the parts: a space before
the answer is written in ``target``. A template can't call out of its sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
from jinja2.meta import find_undeclared_variables
from pydantic import BeforeValidator, Field

from llmctl.config import Config, build
from llmctl.errors import ConfigError, InputError, did_you_mean
from llmctl.parsing import Malformed, parse_toml
from llmctl.tokenizers.sandbox import BoundedEnvironment

TEXT, TEXT_PAIR, LABEL, MASK = "text", "text_pair", "label", "mask"
MASK_PLACE = "\ufdd0"
"""What stands in a prompt where a masked language model is to say a word; no character of texts."""


def _written_labels(value: object) -> object:
    """``1=world,2=sports``, or ``world,sports`` for labels that are their words."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(",")]
    return {label.strip(): (word if equals else label).strip() for label, equals, word in parts}


Verbalizer = Annotated[dict[str, str], BeforeValidator(_written_labels)]
"""How each label is written, by the label."""


class TemplateFile(Config):
    """The keys of a template's file."""

    input: str = Field(min_length=1)
    """The question."""
    target: str = Field(" {{ label }}", min_length=1)
    """Its answer."""
    separator: str = "\n\n"
    """Between examples."""
    instruction: str = ""
    """Before all of them."""
    prior: str | None = None
    """What an answer stands behind where there is no question."""
    verbalizer: Verbalizer = Field({})
    """How each label is written."""


@dataclass(frozen=True)
class PromptRow:
    """A row of a table, for a template to fill in."""

    values: Mapping[str, Any]
    label: str | None
    source: str


class PromptTemplate:
    """A template that has been read and parsed."""

    def __init__(self, file: TemplateFile, path: Path | str) -> None:
        """path: what it is called in messages. Raises InputError for what is not Jinja2."""
        self.path, self.file = path, file
        self._environment = BoundedEnvironment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            # A cell without a value is an empty text, as it is wherever tables are read.
            finalize=lambda value: "" if value is None else value,
        )
        self._input, self.input_fields = self._parsed("input", file.input)
        self._target, self.target_fields = self._parsed("target", file.target)
        self.verbalizer = dict(file.verbalizer)

    @property
    def fields(self) -> set[str]:
        """What it asks of a row, the label aside."""
        return (self.input_fields | (self.target_fields - {LABEL})) - {MASK}

    @property
    def is_cloze(self) -> bool:
        """Whether a label's word stands within the input, and not behind it."""
        return MASK in self.input_fields

    @property
    def tells_label(self) -> bool:
        """Whether solved examples need labels."""
        return LABEL in self.target_fields

    @property
    def prior(self) -> str:
        """What an answer stands behind where there is no question; of a cloze, the input without
        content: of empty fields (Zhao et al. 2021)."""
        if self.is_cloze:
            empty = PromptRow(dict.fromkeys(self.fields, ""), None, "the prior")
            return self.question(empty) if self.file.prior is None else self._prior_cloze()
        if self.file.prior is not None:
            return self.file.prior
        return self.file.input.rpartition("}")[2].lstrip()

    def question(self, row: PromptRow) -> str:
        """The input of a row, a cloze's with ``MASK_PLACE`` in it. Raises InputError naming a
        column that isn't there, or where a cloze has not one place for a word."""
        return self._render(self._input, self.input_fields, row, row.label)

    def answer(self, row: PromptRow, label: str | None) -> str:
        """The target of a row with a label, a cloze's without the space before it. Raises
        InputError for a label that is unknown."""
        answer = self._render(self._target, self.target_fields, row, label)
        return answer.strip() if self.is_cloze else answer

    def solved(self, row: PromptRow) -> str:
        """A row with its answer, as an example."""
        question, answer = self.question(row), self.answer(row, row.label)
        return question.replace(MASK_PLACE, answer) if self.is_cloze else question + answer

    def _prior_cloze(self) -> str:
        """A prior that is written out, which needs a place for the word, too."""
        source = self.file.prior or ""
        prior = self._environment.from_string(source).render({MASK: MASK_PLACE})
        return self._one_place(prior, f"prior {source!r}")

    def prompt(self, shots: Sequence[str], question: str) -> str:
        """Solved examples and a question as one text."""
        parts = [self.file.instruction] if self.file.instruction else []
        return self.file.separator.join([*parts, *shots, question])

    def _written(self, label: str, row: PromptRow) -> str:
        if self.verbalizer and label not in self.verbalizer:
            raise InputError(
                f"{row.source}: the verbalizer of --template {self.path} has no {LABEL} {label!r}"
                f"{did_you_mean(label, self.verbalizer)}; it has {', '.join(self.verbalizer)}"
            )
        return self.verbalizer.get(label, label)

    def _parsed(self, key: str, source: str) -> tuple[jinja2.Template, set[str]]:
        try:
            fields = find_undeclared_variables(self._environment.parse(source))
            return self._environment.from_string(source), fields
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"--template {self.path}: {key}, line {error.lineno}, is not Jinja2: "
                f"{error.message}"
            ) from None

    def _render(
        self,
        template: jinja2.Template,
        fields: set[str],
        row: PromptRow,
        label: str | None,
    ) -> str:
        values = dict(row.values)
        if label is not None:
            values[LABEL] = self._written(label, row)
        if MASK in fields:
            values[MASK] = MASK_PLACE
        self._environment.begin()
        try:
            rendered = template.render(values)
            return self._one_place(rendered, row.source) if MASK in fields else rendered
        except jinja2.UndefinedError as error:
            missing = sorted(fields - values.keys())
            if not missing:
                raise InputError(f"{row.source}: --template {self.path}: {error.message}") from None
            raise InputError(
                f"{row.source}: --template {self.path} asks for {missing[0]}"
                f"{did_you_mean(missing[0], values)}, and the row has {', '.join(values)}"
            ) from None
        except InputError:
            raise
        except Exception as error:  # what a template computes can fail in any way
            raise InputError(f"{row.source}: --template {self.path} fails: {error}") from None

    def _one_place(self, rendered: str, where: str) -> str:
        places = rendered.count(MASK_PLACE)
        if places != 1:
            raise InputError(
                f"{where}: --template {self.path} gives {places or 'no'} places for the label's "
                "word; write {{ mask }} once"
            )
        return rendered


def read_template(given: Path | str, labels: Mapping[str, str] | None = None) -> PromptTemplate:
    """A template from its file, or written out. labels: how labels are written, over what its
    verbalizer says.

    Raises InputError, naming the key, if it is malformed.
    """
    path = Path(given)
    if is_written_out(given):
        return _template({"input": with_fields(str(given))}, str(given), labels)
    return _template(_table_of(path), path, labels)


def read_templates(path: Path, labels: Mapping[str, str] | None = None) -> list[PromptTemplate]:
    """The templates of a file, to choose from: a table ``[[template]]`` each in TOML, whose other
    keys hold for all of them; else one written out on each line, a # before what is none.

    Raises InputError where one is malformed, or there are none.
    """
    if path.suffix == ".toml":
        table = _table_of(path)
        each = table.pop("template", None)
        if not isinstance(each, list) or not all(isinstance(one, dict) for one in each):
            raise InputError(f"--templates {path} has no [[template]]; write one for each")
        tables = [{**table, **one} for one in each]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise InputError(f"--templates {path} can't be read: {error}") from None
        written = [line.strip() for line in lines if line.strip() and line[0] != "#"]
        tables = [{"input": with_fields(line)} for line in written]
    if not tables:
        raise InputError(f"--templates {path} has no template; write one on each line")
    return [
        _template(table, f"{path}, template {number}", labels)
        for number, table in enumerate(tables, 1)
    ]


def is_written_out(given: Path | str) -> bool:
    """Whether a template is given itself, and not by its file."""
    return isinstance(given, str) and "{" in given and not given.endswith(".toml")


def as_given(given: str | None) -> Path | str | None:
    """What ``--template`` was given: a file, or a template that is written out."""
    return given if given is None or is_written_out(given) else Path(given)


def with_fields(written: str) -> str:
    """A template of one line as Jinja2: ``{text}`` stands for ``{{ text }}``, and ``\\n`` for the
    end of a line."""
    written = written.replace("\\n", "\n")
    if "{{" in written or "{%" in written:
        return written
    return re.sub(r"\{\s*(\w+)\s*\}", r"{{ \1 }}", written)


def _template(
    table: Mapping[str, Any], path: Path | str, labels: Mapping[str, str] | None
) -> PromptTemplate:
    over = {"verbalizer": dict(labels)} if labels else {}
    try:
        return PromptTemplate(build(TemplateFile, {**table, **over}), path)
    except ConfigError as error:
        raise InputError(f"--template {path}: {error}") from None


def _table_of(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"--template {path}: no such file; one that is written out has a field in it, such as "
            "{text}"
        ) from None
    except OSError as error:
        raise InputError(f"--template {path} can't be read: {error}") from None
    except Malformed as error:
        raise InputError(
            f'--template {path} is not TOML: {error}; write input = "Review: {{{{ text }}}}"'
        ) from None
