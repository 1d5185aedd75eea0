"""The template that a cloze model was trained with, as its folder keeps it."""

from __future__ import annotations

from typing import Any

from llmctl.config import build
from llmctl.errors import ConfigError, InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import CLOZE
from llmctl.inference.templates import PromptTemplate, TemplateFile


def template_record(template: PromptTemplate) -> dict[str, Any]:
    """A template's fields, to be kept with the model."""
    return template.file.model_dump(mode="json")


def kept_template(folder: Pretrained) -> PromptTemplate:
    """The template of a folder. Raises InputError where it is malformed."""
    try:
        fields = folder.fields[CLOZE]
        return PromptTemplate(build(TemplateFile, fields), f"of {folder.path}")
    except (ConfigError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.files[0]}: {CLOZE} is no template: {error}") from None
