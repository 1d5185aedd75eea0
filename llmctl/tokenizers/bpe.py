"""Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), lossless on any text.

Text is cut by a pattern, each part is read as UTF-8 bytes, and frequent pairs are merged. The 256
bytes are the alphabet, so nothing is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from llmctl.errors import InputError
from llmctl.tokenizers.cuts import in_parts
from llmctl.tokenizers.fast import FastTokenizer, begin_with, panics_told
from llmctl.tokenizers.patterns import DEFAULT_PATTERN, LEARNABLE, byte_level
from llmctl.tokenizers.vocabulary_size import VocabularyError

BPE_SPECIAL = ("<|endoftext|>", "<|pad|>", "<|mask|>", "<|im_start|>", "<|im_end|>")
"""One set for GPT and BERT. ``<|endoftext|>`` stands between documents, so it is their start and
their end, as in GPT-2, and BERT's cls and sep, which differ by their place; the turns of a chat
are ChatML's."""
MIN_PAIR_COUNT = 2


def learn_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split_pattern: str = DEFAULT_PATTERN,
    exact: bool = True,
) -> FastTokenizer:
    """Learn merges.

    split_pattern: a name in ``LEARNABLE``.
    Raises InputError if ``vocab_size`` can't hold the bytes and, if ``exact``, VocabularyError if
    the corpus can't fill it.
    """
    rust = RustTokenizer(BPE())
    rust.pre_tokenizer = byte_level(LEARNABLE[split_pattern])
    rust.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(BPE_SPECIAL) + len(alphabet)
    if vocab_size < smallest:
        raise InputError(
            f"--vocab-size {vocab_size}: the 256 bytes and {len(BPE_SPECIAL)} special tokens need "
            f"{smallest}; use --vocab-size {smallest} or more"
        )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=[AddedToken(token, special=True) for token in BPE_SPECIAL],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    with panics_told():
        rust.train_from_iterator(in_parts(texts), trainer)
    size = rust.get_vocab_size()
    if exact and size < vocab_size:
        raise VocabularyError(vocab_size, size)
    begin_with(rust, BPE_SPECIAL[0])
    return FastTokenizer("bpe", rust)
