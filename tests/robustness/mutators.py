"""Inputs made from sound files: bytes, texts, JSON, TOML, tables, Arrow and safetensors, changed.

An input is a function of the reader's name and a number: the same today and tomorrow. A quarter is
drawn by hypothesis, with what the sound file has as its alphabet; the others are mutations.
"""

from __future__ import annotations

import functools
import gzip
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

BY_HYPOTHESIS = 4
"""Every fourth input is hypothesis's …"""
DRAWN_TOGETHER = 16
"""… drawn so many at a time."""
LONGEST = 4 << 20
"""Bytes of an input."""

TOKENS = (
    b"\0", b"\n", b"\r", b"\r\n", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe",
    "\u2028".encode(),
    "\U0001f642".encode(), "\u202e".encode(), "a\u0301".encode(), b"\x1b[31m", b"\t",
    b'"', b"'", b",", b";", b"{", b"}", b"[", b"]", b"{{", b"}}", b"{%", b"%}", b"\\", b"\\ud800",
    b"null", b"NaN", b"Infinity", b"-1", b"0", b"1e308", b"1e999", b"9" * 5000, b"[" * 20_000,
    b"(a+)+$", b"../../../outside", b"/etc/passwd", b"%s%n", b"a" * 5000, b" " * 40_000,
    b"__import__('os').system('id')",
    b"{{ ''.__class__.__mro__[1].__subclasses__() }}", b"[MASK]", b"[UNK]", b"<|endoftext|>",
)  # fmt: skip
FRAGMENTS = (
    "null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e308", "-1e308", "1e999", "NaN",
    "Infinity", "-Infinity", "10000000", "2147483648", "-2147483649", "9223372036854775808",
    "1" + "0" * 20, "9" * 5000, '""', '"a"', '" "', json.dumps("a" * 5000), '"\\ud800"',
    '"\\u0000"',
    '"../../outside"', '"/etc/passwd"', '"(a+)+$"', '"now"', '"\\u001b[31m"', "[]", "{}", "[[]]",
    "[null]", "[1, 2]", '["a", "b"]', '{"a": 1}', '{"": null}', "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000,
)  # fmt: skip
TOML_VALUES = (
    *FRAGMENTS[:40], "inf", "nan", "-inf", "1979-05-27", "07:32:00", "1979-05-27T00:32:00Z",
    '"""a\nb"""', "{ a = 1 }", "[[1], [2]]", "0x10", "1_000",
)  # fmt: skip

Mutate = Callable[[bytes, random.Random], bytes]


class Mutators:
    """The inputs of a reader."""

    def __init__(self, name: str, targets: dict[str, str], base: dict[str, bytes]) -> None:
        self._name, self._targets, self._base = name, targets, base

    def input(self, number: int) -> dict[str, bytes]:
        """The changed files of a number; none where there is nothing to change."""
        if not self._targets:
            return {}
        generator = random.Random(f"{self._name}/{number}")
        target = generator.choice(list(self._targets))
        form, content = self._targets[target], self._base[target]
        if number % BY_HYPOTHESIS == BY_HYPOTHESIS - 1:
            group, place = divmod(number // BY_HYPOTHESIS, DRAWN_TOGETHER)
            return {target: self._drawn(target, group)[place]}
        for _ in range(generator.choice((1, 1, 1, 2, 4))):
            structural = generator.random() < 0.7
            mutate = STRUCTURAL.get(form, mutate_bytes) if structural else _as_bytes(form)
            content = mutate(content, generator)[:LONGEST]
        return {target: content}

    @functools.lru_cache(maxsize=64)  # noqa: B019  # lives as long as its process
    def _drawn(self, target: str, group: int) -> list[bytes]:
        """What hypothesis draws for a file."""
        found: list[bytes] = []

        @seed(hash_of(f"{self._name}/{target}/{group}"))
        @settings(
            max_examples=DRAWN_TOGETHER,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(content=drawn(self._targets[target], self._base[target]))
        def collect(content: bytes) -> None:
            found.append(content)

        collect()
        return (found * DRAWN_TOGETHER)[:DRAWN_TOGETHER]


def hash_of(text: str) -> int:
    """A number of a text, the same in every process."""
    return random.Random(text).getrandbits(32)


# Bytes and texts


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """Bytes changed without any idea of what they mean."""
    a, b = sorted(generator.choices(range(len(content) + 1), k=2))
    kind = generator.randrange(10)
    if kind == 0:  # some bits
        changed = bytearray(content)
        for _ in range(generator.choice((1, 1, 2, 8, 64)) if content else 0):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        return bytes(changed)
    if kind == 1:  # cut short
        return content[:b]
    if kind == 2:  # a piece gone
        return content[:a] + content[b:]
    if kind == 3:  # a piece elsewhere too
        return content[:a] + content[a:b] + content[generator.choice((0, a)) :]
    if kind in (4, 5, 6):  # something put in
        return content[:a] + generator.choice(TOKENS) + content[a:]
    if kind == 7:  # something in the place of a piece
        return content[:a] + generator.choice(TOKENS) + content[b:]
    if kind == 8:  # a piece very often
        piece = content[a : min(b, a + 64)] or b"a"
        return content[:a] + piece * (generator.choice((3, 300, 100_000)) // len(piece) + 2)
    return generator.choice(
        (b"", b"\0" * 100, content * 2, content[::-1], b"\xef\xbb\xbf" + content)
    )


def mutate_lines(content: bytes, generator: random.Random) -> bytes:
    """Lines dropped, doubled, exchanged, or changed within."""
    lines = content.split(b"\n")
    place = generator.randrange(len(lines))
    kind = generator.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines[place:place] = [lines[place]] * generator.choice((1, 2, 2000))
    elif kind == 2:
        other = generator.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == 3:
        lines[place] = generator.choice(TOKENS)
    else:
        lines[place] = mutate_bytes(lines[place], generator)
    return generator.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


# JSON and TOML


def mutate_json(content: bytes, generator: random.Random) -> bytes:
    """A value or a key of a JSON text changed."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, generator)
    marks: dict[str, str] = {}

    def mark(raw: str) -> str:
        name = f"\x01{len(marks)}\x01"
        marks[name] = raw
        return name

    changed = _changed(value, generator, mark)
    try:
        text = json.dumps(changed, ensure_ascii=generator.random() < 0.5)
    except RecursionError:
        return content
    for name, raw in marks.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, generator: random.Random, mark: Callable[[str], str]) -> Any:
    """A tree with one of its values changed; raw JSON may be marked in it."""
    if isinstance(value, dict) and value:
        key = generator.choice(list(value))
        kind = generator.random()
        if kind < 0.6:
            return {**value, key: _changed(value[key], generator, mark)}
        if kind < 0.7:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.8:
            other = generator.choice(list(value))
            return {**value, key: value[other], other: value[key]}
        if kind < 0.85:
            new = generator.choice(("", "a", "A" * 300, key.upper(), key + " "))
            return {(new if k == key else k): v for k, v in value.items()}
        if kind < 0.9:  # the same key twice
            raw = f"{json.dumps(value[key])}, {json.dumps(key)}: {generator.choice(FRAGMENTS)}"
            return {**value, key: mark(raw)}
    elif isinstance(value, list) and value:
        place = generator.randrange(len(value))
        kind = generator.random()
        if kind < 0.6:
            inner = _changed(value[place], generator, mark)
            return [*value[:place], inner, *value[place + 1 :]]
        if kind < 0.7:
            return value[:place] + value[place + 1 :]
        if kind < 0.8:
            return [*value, *[value[place]] * generator.choice((1, 2, 2000))]
        if kind < 0.9:
            return generator.sample(value, len(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if generator.random() < 0.5:
            factor = generator.choice((0, -1, 2, 0.5, 10, 1000, 10**6, 10**9))
            return generator.choice((value + 1, value - 1, value * factor))
    elif isinstance(value, str) and generator.random() < 0.4:
        token = generator.choice(TOKENS).decode(errors="surrogateescape")
        a = generator.randrange(len(value) + 1)
        text = generator.choice(
            (value + token, value[:a] + token + value[a:], value[:a], value * 50)
        )
        return text.encode("utf-8", "replace").decode()
    return mark(generator.choice(FRAGMENTS))


def mutate_jsonl(content: bytes, generator: random.Random) -> bytes:
    """JSON lines: one of them changed, or their order."""
    if generator.random() < 0.25:
        return mutate_lines(content, generator)
    lines = content.split(b"\n")
    place = generator.randrange(len(lines))
    lines[place] = mutate_json(lines[place], generator)
    return b"\n".join(lines)


def mutate_toml(content: bytes, generator: random.Random) -> bytes:
    """A value of a TOML text changed, or its lines."""
    lines = content.split(b"\n")
    with_value = [number for number, line in enumerate(lines) if b"=" in line]
    if not with_value or generator.random() < 0.2:
        return mutate_lines(content, generator)
    place = generator.choice(with_value)
    key = lines[place].partition(b"=")[0]
    value = generator.choice(TOML_VALUES).encode("utf-8", "surrogatepass")
    lines[place] = key + b"= " + value
    if generator.random() < 0.1:
        lines[place] = b"a." * generator.choice((2, 2000)) + lines[place]
    return b"\n".join(lines)


# Tables


def mutate_delimited(delimiter: bytes) -> Mutate:
    """A CSV or TSV: a cell changed, added or gone."""

    def mutate(content: bytes, generator: random.Random) -> bytes:
        lines = content.split(b"\n")
        place = generator.randrange(len(lines))
        cells = lines[place].split(delimiter)
        cell = generator.randrange(len(cells))
        kind = generator.randrange(7)
        if kind == 0:
            cells[cell] = generator.choice(TOKENS)
        elif kind == 1:
            cells.insert(cell, generator.choice((b"", b"x", cells[cell])))
        elif kind == 2:
            del cells[cell]
        elif kind == 3:
            cells[cell] = (
                b'"' + cells[cell].replace(b'"', b'""') + generator.choice((b'"', b"", b'"x'))
            )
        elif kind == 4:
            cells[cell] = b'"' + cells[cell] + b"\n" * generator.choice((1, 1000)) + b'"'
        elif kind == 5:
            cells = cells * generator.choice((2, 500))
        else:
            return mutate_lines(content, generator)
        lines[place] = delimiter.join(cells)
        return b"\n".join(lines)

    return mutate


def mutate_columnar(write: Callable[[pa.Table], bytes]) -> Mutate:
    """A table of the same columns with values of other types."""

    def mutate(content: bytes, generator: random.Random) -> bytes:
        names = _columns_of(content)
        if names is None:
            return mutate_bytes(content, generator)
        kinds = _odd_columns(generator.choice((0, 1, 3, 40)))
        columns = [generator.choice(kinds) for _ in names]
        if generator.random() < 0.2:
            names[generator.randrange(len(names))] = generator.choice(names)  # one name twice
        try:
            return write(pa.Table.from_arrays(columns, names=names))
        except (pa.ArrowException, OverflowError, ValueError):
            return mutate_bytes(content, generator)

    return mutate


def _columns_of(content: bytes) -> list[str] | None:
    try:
        if content[:4] == b"PAR1":
            return list(pq.ParquetFile(pa.BufferReader(content)).schema_arrow.names) or None
        return list(pa.ipc.open_file(pa.BufferReader(content)).schema.names) or None
    except (pa.ArrowException, UnicodeDecodeError, OSError):
        return None


def _odd_columns(rows: int) -> list[pa.Array]:
    """A column of each type that a table may have."""
    broken = pa.Array.from_buffers(
        pa.string(), rows,
        [None, pa.py_buffer(struct.pack(f"<{rows + 1}i", *range(rows + 1))),
         pa.py_buffer(b"\xff" * rows)],
    )  # fmt: skip
    texts = [f"the ship sails {number}" for number in range(rows)]
    return [
        pa.array(texts),
        pa.array([None, *texts][:rows], pa.string()),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array(texts).dictionary_encode(),
        pa.array([b"\xff\xfe"] * rows, pa.binary()),
        broken,
        pa.array(range(rows)),
        pa.array([float("nan")] * rows),
        pa.array([True] * rows),
        pa.nulls(rows),
        pa.array([[text, None] for text in texts], pa.list_(pa.string())),
        pa.array([[{"role": "user", "content": text}] for text in texts],
                 pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))),
        pa.array([{"text": texts}] * rows, pa.struct({"text": pa.list_(pa.string())})),
        pa.array([2**62] * rows, pa.timestamp("ns")),
        pa.array([2**62] * rows, pa.timestamp("s", tz="Nowhere/Atlantis")),
        pa.array([2**62] * rows, pa.date64()),
        pa.array([2**62] * rows, pa.duration("s")),
        pa.array([None] * rows, pa.decimal256(76, 3)),
        pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        pa.array([b"abcd"] * rows, pa.binary(4)),
        pa.array([None] * rows, pa.month_day_nano_interval()),
    ]  # fmt: skip


def as_arrow(table: pa.Table) -> bytes:
    """A table as an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


SHARD_VALUES = (
    pa.uint16(), pa.uint32(), pa.int32(), pa.int64(), pa.float32(), pa.float16(), pa.bool_(),
    pa.string(),
)  # fmt: skip


def mutate_shard(content: bytes, generator: random.Random) -> bytes:
    """An Arrow file of lists of numbers with other numbers, types and offsets."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all().combine_chunks()
        place = generator.randrange(table.num_columns)
        array = table.column(place).chunk(0)
        kind = generator.randrange(4)
        if not pa.types.is_large_list(array.type):
            changed = generator.choice(_odd_columns(len(array)))
        elif kind == 0:  # other values of the same type
            values = array.values.to_numpy(zero_copy_only=False).copy()
            for _ in range(generator.choice((1, 3)) if len(values) else 0):
                values[generator.randrange(len(values))] = generator.choice(
                    (0, 1, 7, 119, 120, 65535)
                )
            changed = pa.LargeListArray.from_arrays(
                array.offsets, pa.array(values, array.type.value_type)
            )
        elif kind == 1:  # another type
            values = array.values.cast(generator.choice(SHARD_VALUES), safe=False)
            changed = pa.LargeListArray.from_arrays(array.offsets, values)
        else:  # other offsets, put there behind Arrow's back, which refuses to write some
            offsets = array.offsets.to_numpy().copy()
            before = offsets.tobytes()
            odd = (-1, 0, 1, len(array.values) + 1, 2**40, -(2**63), 2**63 - 1)
            offsets[generator.randrange(len(offsets))] = generator.choice(odd)
            if generator.random() < 0.3:
                offsets = offsets[::-1].copy()
            return content.replace(before, offsets.tobytes())
        fields = table.schema.set(place, table.schema.field(place).with_type(changed.type))
        columns = [changed if n == place else c.chunk(0) for n, c in enumerate(table.columns)]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, fields) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=fields))
        return sink.getvalue().to_pybytes()
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, IndexError, OverflowError):
        return mutate_bytes(content, generator)


def mutate_safetensors(content: bytes, generator: random.Random) -> bytes:
    """The header changed as JSON, or the numbers behind it."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header, data = content[8 : 8 + length], bytearray(content[8 + length :])
        fields = json.loads(header)
    except (struct.error, ValueError, MemoryError, OverflowError, RecursionError):
        return mutate_bytes(content, generator)
    kind = generator.randrange(6)
    if kind == 0 and len(data) >= 4:  # numbers that are none
        place = generator.randrange(len(data) // 4) * 4
        odd = generator.choice((float("nan"), float("inf"), -float("inf"), 3e38, 0.0))
        data[place : place + 4] = struct.pack("<f", odd)
        return content[: 8 + length] + bytes(data)
    if kind == 1:  # a length that isn't the header's
        wrong = generator.choice((0, 1, length - 1, length + 1, 2**20, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + header + bytes(data)
    if kind in (2, 3) and isinstance(fields, dict) and fields:  # one tensor's type or shape
        entry = fields[generator.choice(list(fields))]
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            if generator.random() < 0.5:
                entry["dtype"] = generator.choice(
                    ("I32", "U32", "F32", "BOOL", "C64", "F8_E4M3", "BF16", "F64", "U8")
                )
            else:
                shape = entry["shape"]
                entry["shape"] = generator.choice(
                    (shape[::-1], [*shape, 1], [1, *shape], [-1], [0], [2**40], [2**62, 4, 0])
                )
        changed = json.dumps(fields).encode()
    else:
        changed = mutate_json(header, generator)
    return struct.pack("<Q", len(changed)) + changed + bytes(data)


# Compressed files: changed inside, or as they lie on the disk


def _within(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> Mutate:
    def mutate(content: bytes, generator: random.Random) -> bytes:
        try:
            inner = unpack(content)
        except Exception:  # whatever a damaged file makes of it
            return mutate_bytes(content, generator)
        return pack(mutate_lines(inner, generator))

    return mutate


STRUCTURAL: dict[str, Mutate] = {
    "text": mutate_lines,
    "json": mutate_json,
    "jsonl": mutate_jsonl,
    "toml": mutate_toml,
    "csv": mutate_delimited(b","),
    "tsv": mutate_delimited(b"\t"),
    "ranks": mutate_delimited(b" "),
    "arrow": mutate_columnar(as_arrow),
    "parquet": mutate_columnar(as_parquet),
    "shard": mutate_shard,
    "safetensors": mutate_safetensors,
    "gzip": _within(gzip.decompress, functools.partial(gzip.compress, mtime=0)),
    "zstd": _within(
        lambda content: zstandard.ZstdDecompressor().decompress(content, max_output_size=LONGEST),
        lambda content: zstandard.ZstdCompressor().compress(content),
    ),
}


def _as_bytes(form: str) -> Mutate:
    return mutate_lines if form in ("jsonl", "csv", "tsv") else mutate_bytes


# Hypothesis


def drawn(form: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Files of a form, with the words, keys and values of a sound one among what is drawn."""
    if form in ("json", "jsonl"):
        line = _json_like(content.split(b"\n")[0] if form == "jsonl" else content)
        if form == "json":
            return line
        return st.lists(line, max_size=4).map(b"\n".join)
    if form == "toml":
        keys = sorted(
            {line.partition(b"=")[0].strip() for line in content.split(b"\n") if b"=" in line}
        )
        tables = [line for line in content.split(b"\n") if line.startswith(b"[")] or [b""]
        values = st.sampled_from(TOML_VALUES).map(
            lambda text: text.encode("utf-8", "surrogatepass")
        )
        line = st.builds(
            lambda key, value: key + b" = " + value, st.sampled_from(keys or [b"a"]), values
        )
        return st.lists(st.sampled_from(tables) | line, max_size=6).map(b"\n".join)
    if form in ("csv", "tsv", "ranks", "text"):
        separator = {"csv": b",", "tsv": b"\t", "ranks": b" ", "text": b" "}[form]
        cell = st.sampled_from(
            sorted(set(content.replace(b"\n", separator).split(separator)))[:200]
        )
        cell |= st.sampled_from(TOKENS) | st.text(max_size=8).map(
            lambda text: text.encode("utf-8", "surrogatepass")
        )
        line = st.lists(cell, max_size=5).map(separator.join)
        return st.lists(line, max_size=6).map(b"\n".join)
    return st.builds(
        lambda head, middle, tail: content[:head] + middle + content[len(content) - tail :],
        st.integers(0, len(content)), st.binary(max_size=40), st.integers(0, len(content)),
    )  # fmt: skip


def _json_like(content: bytes) -> st.SearchStrategy[bytes]:
    try:
        known = json.loads(content)
    except (ValueError, RecursionError):
        known = {}
    keys: list[str] = []
    leaves: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            keys.extend(list(value)[:100])
            for entry in list(value.values())[:100]:
                collect(entry)
        elif isinstance(value, list):
            for entry in value[:100]:
                collect(entry)
        else:
            leaves.append(value)

    collect(known)
    leaf = st.sampled_from(leaves or [0]) | st.none() | st.booleans() | st.integers() | st.floats()
    leaf |= st.text(max_size=8)
    key = st.sampled_from(keys or ["a"])
    tree = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=5),
        max_leaves=12,
    )  # fmt: skip
    if isinstance(known, dict) and known:  # mostly the sound object, with some of its fields anew
        changes = st.dictionaries(st.sampled_from(list(known)), tree, max_size=3)
        tree = changes.map(lambda fields: {**known, **fields}) | tree
    return tree.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
