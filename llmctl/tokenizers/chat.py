"""Chat: the turn tokens' layout that learned tokenizers have, as a Jinja template.

The template is ChatML's, in the conventions of transformers: it is given ``messages`` (each a role
and a content; a system message, if any, is the first), ``add_generation_prompt`` and the names of
the special tokens, and gives the text to encode with special tokens allowed. It begins with the
document's start, as every text in pretraining does.
"""

from __future__ import annotations

CHATML = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""All in one line, so that an environment's rules for white space around blocks don't matter."""
