"""Writes the text of a file of tagged words: a sentence a line, to pretrain on.

python recipes/words_of.py TAGGED TEXT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmctl.data.tables.tagged import TaggedColumns, read_tagged
from llmctl.reporting.reporter import Reporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tagged", type=Path)
    parser.add_argument("text", type=Path)
    options = parser.parse_args()
    texts, _ = read_tagged(options.tagged, TaggedColumns(), Reporter(), need_tags=False)
    options.text.parent.mkdir(parents=True, exist_ok=True)
    options.text.write_text("".join(f"{text.text}\n" for text in texts), encoding="utf-8")


main()
