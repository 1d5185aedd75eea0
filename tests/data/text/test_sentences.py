"""Where sentences start: what holds for any text, and a table cut by hand."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.text.sentences import sentence_starts

ENGLISH = [
    "She left. |He stayed.",
    "Is it so? |Yes! |It is.",
    "Wait... |What was that?",
    "He paused… then went on.",
    'He said "Stop." |She ran.',
    "He said “Stop.” |She ran.",
    "(It rained.) |We stayed in.",
    "It ended. |(Nobody knew why.)",
    'It ended. |"Why?" she asked.',
    "Dr. Lee saw Mr. and Mrs. Smith. |They talked.",
    "Prof. J. K. Rowling met George W. Bush. |He smiled.",
    "He said no. |Then he left.",
    "See No. 5 and no. 12 of vol. 3. |Read on.",
    "The cat sat. |Then it slept in the sun. |We admired the art.",
    "It began on Jan. 5 and ended in Dec. |The year was over.",
    "Many tools, e.g. Python and i.e. C, vs. Rust. |We use them.",
    "It grew, cf. Smith et al. 2010, by half. |That was enough.",
    "The U.S. Army came at 5 p.m. |They left at 6 a.m. |It was quiet.",
    "He moved to the U.S. |He never came back.",
    "Apple Inc. Chairman Levinson spoke. |Nobody at Acme Corp. |But we listened.",
    "Born c. 1500, he died in 1560. |His son, b. 1530, ruled.",
    "See p. 45 and pp. 50 of fig. 3, ch. IV. |Then stop.",
    "It costs 3.50 dollars. |Version 2.0 is at example.com. |7 people came.",
    "It was 1990. |The wall fell.",
    "1. Wash the rice. |2. Boil it. |3. Eat.",
    "Plan B. |It may work, said Malcolm X. |He smiled.",
    "the ship . |The crew .",
    "iPhone sales rose. but that ended",
    "Contents\n\n|Chapter one begins\n\n\n|It goes on",
    "It starts at 5 a.m.\n\n|Doors open early.",
    "A line\nbroken in the middle. |Another\none.",
    "Buy:\n|- milk\n|- bread\n|* salt\n|1. now\n|2) later",
    "    x = a.b\n    y = c",
    "Élan is gone. |Écrire reste. |Škoda is a car. |Это всё. |Да.",
    "# 1. One. Two\n|Some text. |More.\n|## Next\n\n\n|Text, a #tag and #5",
    "# Title\n\n|# Title\n|Text\n|###### Deep",
    "####### Seven are none, nor\n#this\n    # or code",
    "He paid. |$5 was enough. |€3 too. |— Then he left. |¿Por qué? |¡No! |#2 was last.",
    "It ended.[1] |The rest is known.[2][13] |He said so (p. 5).[4] |She did.[a] not",
    "See No. #5 and approx. $5, about Fig. 3.[1] |It is so.",
    "St. Louis is on the Mississippi. |Mt. Everest is not. |One more rep. |Then rest.",
]

CHINESE = [
    "今天下雨。|我们没出门。",
    "你好吗？|我很好！|谢谢。",
    "他说：“走吧。”|她没动。",
    "「真的？」|他问。",
    "（下雨了。）|我们回家。",
    "什么？！|不可能！！|是真的。",
    "他走了……没有回来。|天黑了。",
    "一、二；三，四：五。|六",
    "房间很大!|服务不错.|下次再来?|会的",
    "价格是3.5元,不贵。|版本2.0很好。",
    "他在IBM工作。|She works at NASA. |他们认识。",
    "第一段\n\n|第二段。\n|第三段。",
    "他用 Python. |我用 C。|Go is fine. |好。",
]


@pytest.mark.parametrize("marked", [*ENGLISH, *CHINESE])
def test_a_table_cut_by_hand(marked: str) -> None:
    text = marked.replace("|", "")
    cuts = [*sentence_starts(text), len(text)]
    assert "|".join(text[a:b] for a, b in pairwise(cuts)) == marked


WORDS = ["Dr", "A", "no", "5", "x", "The", ".", "!", "?", "…", "。", "！", '"', ")", "”", " ", "\n",
         "\t", "- ", "# ", "\n## ", "[1]", "$", "1. ", "天", "气", "É", "\x1c", "\u3000", "e.g",
         "U.S"]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=30).map("".join)))
def test_starts_rise_from_zero_and_point_at_visible_characters(text: str) -> None:
    starts = sentence_starts(text)
    assert starts[0] == 0
    assert all(a < b for a, b in pairwise(starts))
    assert all(start < len(text) and not text[start].isspace() for start in starts[1:])


@given(st.lists(st.sampled_from(WORDS), max_size=15), st.lists(st.sampled_from(WORDS), max_size=15))
def test_a_blank_line_always_parts(before: list[str], after: list[str]) -> None:
    head, tail = "".join(before) + "x", "x" + "".join(after)
    assert len(head) + 2 in sentence_starts(f"{head}\n\n{tail}")
    assert len(head) + 5 in sentence_starts(f"{head}.\n \n {tail}")


@pytest.mark.parametrize(
    "text", ["." * 200_000, ". " * 200_000, "\n" * 400_000, "。" * 200_000, '."' * 200_000,
             "a." + " " * 200_000 + "b", "\n" + " " * 200_000 + "b", "天" + "?" * 200_000]
)  # fmt: skip
def test_runs_of_marks_take_linear_time(text: str) -> None:
    begin = time.process_time()
    sentence_starts(text)
    # Quadratic, they would take minutes.
    assert time.process_time() - begin < 2
