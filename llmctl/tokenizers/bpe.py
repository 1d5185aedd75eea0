"""Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), lossless on any text.

Text is cut by GPT-2's pattern, each piece is read as UTF-8 bytes, and frequent pairs are merged.
The 256 bytes are the alphabet, so nothing is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from llmctl.errors import InputError
from llmctl.tokenizers.base import FastTokenizer, VocabularyError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""RoBERTa's, in its order."""
MIN_PAIR_COUNT = 2


def learn_bpe(texts: Iterable[str], vocab_size: int, *, exact: bool = True) -> FastTokenizer:
    """Learn merges. Raises InputError if ``vocab_size`` can't hold the bytes and, if ``exact``,
    VocabularyError if the corpus can't fill it."""
    rust = RustTokenizer(BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rust.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL) + len(alphabet)
    if vocab_size < smallest:
        raise InputError(
            f"--vocab-size {vocab_size}: the 256 bytes and {len(SPECIAL)} special tokens need "
            f"{smallest}; use --vocab-size {4 * smallest} or more"
        )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    rust.train_from_iterator(iter(texts), trainer)
    size = rust.get_vocab_size()
    if exact and size < vocab_size:
        raise VocabularyError(vocab_size, size)
    ids = {token: rust.token_to_id(token) for token in SPECIAL}
    rust.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    return FastTokenizer("bpe", rust)
