"""Unigram language-model pieces (Kudo 2018) and byte-pair encoding over characters with byte
fallback, as Llama has it: learned by sentencepiece so that nothing of a text is lost.

Text is not normalised, no space is put before it, runs of spaces and line ends may be pieces, and
a character that is no piece is spelled in its bytes (byte fallback). What was learned moves into a
tokenizer.json, so that one library encodes and every tool opens the result. There a space is a
space, not sentencepiece's mark ``▁``, which would be the same as a ``▁`` of the text.

Sentencepiece's BPE merges whichever neighbours make the piece of the highest score. A
tokenizer.json lists pairs by rank instead, so every way to cut a piece in two is listed, at the
piece's rank.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE, Unigram

from llmctl.errors import InputError
from llmctl.tokenizers.fast import FastTokenizer, begin_with
from llmctl.tokenizers.patterns import by_words
from llmctl.tokenizers.token_bytes import SPACE_MARK
from llmctl.tokenizers.vocabulary_size import AlphabetError, VocabularyError, roomy

SENTENCEPIECE_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>", "<|im_start|>", "<|im_end|>")
"""The ids 0 to 6; the 256 bytes follow. Sentencepiece must have ``<unk>``, which never comes."""
BYTES = 256
MAX_SENTENCES = 2_000_000
"""Sentencepiece holds its sample in memory; this many parts are several gigabytes."""
LONGEST_PART = 4192
"""Bytes; sentencepiece leaves out longer sentences, so texts are cut to parts of at most these."""

_INSIDE = "|".join(re.escape(token[1:-1]) for token in SENTENCEPIECE_SPECIAL)
NAME_START = f"<(?=(?:{_INSIDE}|0x[0-9A-F]{{2}})>)"
"""Text is cut behind this: special tokens and bytes are pieces, and text must not match them."""


def learn_unigram(texts: Iterable[str], vocab_size: int, *, exact: bool = True) -> FastTokenizer:
    """Learn pieces. If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its alphabet doesn't fit."""
    learned = learn_pieces(texts, "unigram", vocab_size, exact=exact)
    pieces = list(zip(learned.names, learned.scores, strict=True))
    rust = RustTokenizer(Unigram(pieces, unk_id=1, byte_fallback=True))
    finish(rust, also_cut=NAME_START)
    # Scores lose digits in JSON: go through it once, so that a loaded copy is the same.
    return FastTokenizer("unigram", RustTokenizer.from_str(rust.to_str()))


def learn_sentencepiece_bpe(
    texts: Iterable[str], vocab_size: int, *, exact: bool = True
) -> FastTokenizer:
    """Learn pieces. If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its alphabet doesn't fit."""
    learned = learn_pieces(texts, "bpe", vocab_size, exact=exact)
    vocabulary = {name: number for number, name in enumerate(learned.names)}
    rust = RustTokenizer(
        BPE(vocabulary, _merges(learned), unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    )
    finish(rust)
    return FastTokenizer("sentencepiece-bpe", rust)


def _merges(learned: Pieces) -> list[tuple[str, str]]:
    first = learned.first_learned
    names = learned.names[first:]
    score_of = dict(zip(names, learned.scores[first:], strict=True))
    return [
        (name[:cut], name[cut:])
        for name in sorted(names, key=score_of.__getitem__, reverse=True)
        for cut in range(1, len(name))
        if name[:cut] in score_of and name[cut:] in score_of
    ]


class Pieces:
    """What sentencepiece learned, in the order of the ids."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        numbers = range(processor.get_piece_size())
        self.names = [processor.id_to_piece(n).replace(SPACE_MARK, " ") for n in numbers]
        self.scores = [processor.get_score(n) for n in numbers]
        self.first_learned = len(SENTENCEPIECE_SPECIAL) + BYTES


def learn_pieces(texts: Iterable[str], model_type: str, vocab_size: int, *, exact: bool) -> Pieces:
    """Learn pieces, the same each time. model_type: ``unigram`` or ``bpe``.

    If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary, AlphabetError if
    its alphabet doesn't fit.
    """
    written = io.BytesIO()
    parts = _Parts(texts)
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            model_writer=written,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=exact,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            # Without these, indented code takes half as many tokens again.
            allow_whitespace_only_pieces=True,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=list(SENTENCEPIECE_SPECIAL[4:]),
            # The vocabulary changes with the number of threads.
            num_threads=1,
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        if parts.error is not None:
            raise parts.error from None
        text = str(error)
        most = re.search(r"value <= (\d+)", text)
        if most:
            raise VocabularyError(vocab_size, int(most[1])) from None
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
        if least:
            if not exact:
                return learn_pieces(texts, model_type, roomy(int(least[1])), exact=False)
            raise AlphabetError(vocab_size, int(least[1])) from None
        raise InputError(
            f"sentencepiece can't learn {vocab_size} pieces from this corpus: {text.strip()}; "
            "give more text or a smaller --vocab-size"
        ) from None
    return Pieces(sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()))


def finish(rust: RustTokenizer, *, also_cut: str | None = None) -> None:
    """The rules around a model of learned pieces. also_cut: a pattern behind which text is cut."""
    rust.pre_tokenizer = by_words(also_cut)
    rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens([AddedToken(token, special=True) for token in SENTENCEPIECE_SPECIAL])
    begin_with(rust, "<s>")


class _Parts:
    """Parts of some texts as the learner takes them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: Exception | None = None
        """What went wrong in the texts: sentencepiece makes it an error of its own."""

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                yield from parts_of(text)
        except Exception as error:
            self.error = error
            raise


def parts_of(text: str) -> Iterator[str]:
    """A text in parts of at most ``LONGEST_PART`` bytes, cut behind a line end, else before a
    space, else anywhere."""
    most = LONGEST_PART // 4  # characters; one has four bytes at most
    start = 0
    while len(text) - start > most:
        end = text.rfind("\n", start, start + most) + 1
        if not end:
            end = text.rfind(" ", start + 1, start + most + 1)
        if end == -1:
            end = start + most
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
