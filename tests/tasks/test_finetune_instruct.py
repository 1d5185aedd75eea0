"""What of a conversation is learned."""

from __future__ import annotations

import numpy as np

from llmctl.data.tables.conversations import Conversation
from llmctl.data.tables.turns import Turn
from llmctl.tasks.instruct.batches import fit
from llmctl.tasks.instruct.task import without_context
from llmctl.tokenizers.chat_template import EncodedChat


def conversation(*learned: bool) -> Conversation:
    turns = [Turn(role, "x", learn) for learn in learned for role in ("user", "assistant")]  # type: ignore[arg-type]
    return Conversation(tuple(turns), "data.jsonl:1")


def test_an_answer_that_is_context_is_read_and_not_scored():
    """Three answers of two tokens behind questions of two: ids 2 and 3, 6 and 7, 10 and 11."""
    scored = np.tile([False, False, True, True], 3)
    chat = EncodedChat(np.arange(12), scored, (4, 8, 12))
    for learned in (
        (True, True, True),
        (False, True, True),
        (True, False, True),
        (True, True, False),
    ):
        found = without_context(chat, conversation(*learned))
        expected = scored & np.repeat(learned, 4)
        assert found.scored.tolist() == expected.tolist()
        assert found.ids.tolist() == chat.ids.tolist()
    assert chat.scored.sum() == 6
    assert fit(without_context(chat, conversation(False, False, False)), 12) is None
