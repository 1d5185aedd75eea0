"""What decides a finetuning by rewards."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llmctl.config import ColumnName, Config, Seconds
from llmctl.data.text.decoding import ReadConfig
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.tasks.grpo.rewards import check_rewards
from llmctl.training.config import TrainingConfig


class RewardConfig(Config):
    """What answers are worth."""

    reward: tuple[str, ...] = ("number",)
    """What an answer is worth: number (its last number equals the row's), regex, json-schema, or a
    function as FILE.py:NAME that is given the answer and its row; several are written a,b."""
    reward_weights: tuple[float, ...] = ()
    """Weights of several rewards, in their order. Unset: 1 each."""
    answer_column: ColumnName | None = None
    """The column of the right number, for the reward number. Unset: answer, solution, target or
    the like."""
    pattern: str | None = None
    """What is looked for in an answer, a regular expression, for the reward regex."""
    schema_file: str | None = None
    """A JSON Schema that answers are to follow, for the reward json-schema."""
    reward_seconds: Seconds = Field(5.0, gt=0)
    """Seconds that a function or a pattern may take for an answer."""

    @field_validator("reward", "reward_weights", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return value.split(",")
        return (value,) if isinstance(value, int | float) else value

    @field_validator("reward")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_rewards(value)
        return value

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} weights for {len(self.reward)} "
                "rewards; give one for each"
            )
        needed = {"pattern": "regex", "schema_file": "json-schema", "answer_column": "number"}
        for field, reward in needed.items():
            if getattr(self, field) is not None and reward not in self.reward:
                raise ValueError(f"{field} is for the reward {reward}; leave it out")
        return self


class MeasuredReward(RewardConfig):
    """What answers are worth that are measured."""

    reward: tuple[str, ...] = ()
    """What an answer is worth: number, regex, json-schema or FILE.py:NAME; several are written a,b.
    Unset: as in the model's finetuning."""


class GrpoObjective(RewardConfig):
    """How answers are tried, and what becomes of their rewards."""

    group_size: int = Field(8, ge=2)
    """Answers that are tried for each prompt, and compared with one another."""
    max_new_tokens: int = Field(64, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(1.0, gt=0)
    """What logits are divided by when answers are drawn: higher tries more."""
    iterations: int = Field(1, ge=1)
    """Steps that are taken on the same answers before others are tried."""
    clip: float = Field(0.2, gt=0)
    """How far a token's probability may move from what it was drawn with, as a share, before it is
    moved no more; with iterations of 2 or more."""
    beta: float = Field(0.0, ge=0)
    """Weight of the divergence from the model that training starts from, β; 0: none."""
    sample_batch: int = Field(256, ge=1)
    """Answers that are written together."""

    @field_validator("reward")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name one reward at least")
        return value


class GrpoData(ReadConfig):
    """Which prompts are held out, and how long they may be."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts, chosen by their text's hash, that are answered at validations alone."""
    max_length: int = Field(0, ge=0)
    """Tokens of a prompt with its answer. 0: as pretrained."""


class GrpoConfig(FinetuneConfig):
    """Everything that decides a finetuning by rewards."""

    task: Literal["grpo"] = "grpo"
    """What is learned."""
    objective: GrpoObjective = GrpoObjective()
    data: GrpoData = GrpoData()
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    patience: int = Field(0, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=3, batch_size=16, warmup=0.05, schedule="constant", weight_decay=0.0
    )
