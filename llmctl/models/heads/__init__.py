"""Networks that stand on a backbone, one file each, and the kernel of their losses. They know no
batches and no tokenizers.

An entry of ``HEADS`` is all that a new one needs outside its own file, but for the names of its
tensors, which are each architecture's (``ModelSpec.weights``).
"""

from __future__ import annotations

from llmctl.models.heads.base import Head
from llmctl.models.heads.causal_lm import CausalLMHead
from llmctl.models.heads.classify import ClassifierHead
from llmctl.models.heads.embed import EmbedderHead
from llmctl.models.heads.encoder_decoder import EncoderDecoderHead
from llmctl.models.heads.gpt_bert import GptBertHead
from llmctl.models.heads.masked_lm import MaskedLMHead
from llmctl.models.heads.regress import RegressorHead
from llmctl.models.heads.replaced_tokens import ReplacedTokensHead
from llmctl.models.heads.setfit import PooledClassifierHead
from llmctl.models.heads.tag import TaggerHead

HEADS: dict[str, Head] = {
    head.kind: head
    for head in (
        ClassifierHead(),
        RegressorHead(),
        TaggerHead(),
        MaskedLMHead(),
        CausalLMHead(),
        ReplacedTokensHead(),
        GptBertHead(),
        EncoderDecoderHead(),
        EmbedderHead(),
        PooledClassifierHead(),
    )
}
"""By what models with them do."""
