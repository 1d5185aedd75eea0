"""What a source on the command line names: files, folders, patterns, pipes.

Nothing that is named is left out without a word: a name that leads nowhere and a folder that can't
be read are errors, a folder that a pattern matches is a folder, and a folder's files of kinds that
we don't know are counted in a note. A link to a folder is followed, each folder once: links may
form a loop.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from llmctl.data.text.files import is_readable, kind_of_suffix
from llmctl.errors import InputError, read_errors_naming
from llmctl.parsing import read_json_object

EVERY_LEVEL = "**"
"""In a pattern: a folder and all below it."""

SAVED_DATASET = ("state.json", "dataset_info.json")
"""The file beside the Arrow files of a ``datasets.Dataset.save_to_disk``."""
SAVED_SPLITS = "dataset_dict.json"
"""The file above the folders of a DatasetDict's splits."""
ANEW = "save the dataset again"
DESCRIPTIONS = (*SAVED_DATASET, "dataset_infos.json")
"""What datasets writes of itself, which is no text."""

MOST_KINDS = 6
"""Kinds of files that a note counts one by one."""


@dataclass
class Found:
    """What a source names."""

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not read, or taken for something, for the user."""


def find(source: str) -> Found | None:
    """The files that a name, a folder or a pattern leads to, in a fixed order; None if it leads
    nowhere. Raises InputError for what is there and can't be read."""
    path = Path(source).expanduser()
    if os.path.isdir(path):  # unlike Path's, false for what can't be a name
        walk = _Walk([str(path)])
        if not walk.files:
            left_out = f": {walk.left_out}" if walk.left_out else ""
            raise InputError(
                f"{source} has no text files (.txt, .md, .jsonl, .csv, .parquet, …){left_out}; "
                "name the files themselves"
            )
        return Found(walk.files, walk.notes(source))
    if os.path.exists(path):
        return Found([path])
    if os.path.lexists(path):
        raise _leads_nowhere(path)
    parts = path.parts[1:] if path.anchor else path.parts
    matches = sorted(set(_matches(path.anchor, parts)))
    return _all_of(source, matches) if matches else None


def no_file(option: str, folder: Path) -> InputError:
    """The error where an option of one file is given a folder: it names a file of the folder."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted({*names} - {*DESCRIPTIONS, SAVED_SPLITS}):
            if is_readable(Path(name)):
                such = f", such as {Path(parent, name)}"
                return InputError(f"{option} {folder} is a folder; give a file of it{such}")
    return InputError(f"{option} {folder} is a folder without data files; give a file")


def is_stream(path: Path) -> bool:
    """Whether a file can be read once only: a pipe, a socket, a terminal.

    Raises InputError for a device, which may have no end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return False
    device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    if device and str(path) != os.devnull and not _is_terminal(path):
        raise InputError(f"{path} is a device, not text; give a file, a folder or a pipe")
    return True


def _is_terminal(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.isatty(handle)
    finally:
        os.close(handle)


def _leads_nowhere(path: Path) -> InputError:
    reason = f"{os.readlink(path)} isn't there"
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = str(error.strerror)
    return InputError(f"{path} is a link that leads nowhere: {reason}; mend it, or remove it")


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, hidden files too, in alphabetical order."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{folder} can't be read: {error.strerror}; change its permissions, or name what is to "
            "be read one by one"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    # A loop of links is an error to the entry itself.
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _tree(tops: Sequence[str]) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Folders and all below them, each once, with what they have that isn't hidden.

    What the caller takes out of the list is not entered, as with os.walk.
    """
    seen: set[tuple[int, int]] = set()
    # Links come last: what a folder has itself goes by its own name.
    folders, links = list(reversed(tops)), list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        with read_errors_naming(folder):
            status = os.stat(folder or os.curdir)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        entries = [entry for entry in _scan(folder) if not entry.name.startswith(".")]
        yield folder, entries
        for entry in entries:
            if _is_folder(entry):
                inside = os.path.join(folder, entry.name)
                (links if entry.is_symlink() else folders).append(inside)


class _Walk:
    """The files of some folders and of all below them whose kind we know by their names."""

    def __init__(self, tops: Sequence[str], named: Container[str] = ()) -> None:
        """named: files that are read whatever their kind, so they aren't left out."""
        self._saved: list[str] = []
        self._left_out: Counter[str] = Counter()
        paths: list[tuple[tuple[str, ...], Path]] = []
        for folder, entries in _tree(tops):
            names = {entry.name for entry in entries}
            if SAVED_SPLITS in names:
                splits = _saved_splits(Path(folder), entries)
                self._saved.append(f"{folder} ({', '.join(splits)})")
                entries[:] = [entry for entry in entries if entry.name in splits]
            elif names.issuperset(SAVED_DATASET):
                saved = enumerate(_saved_files(Path(folder), entries))
                paths += [((*Path(folder).parts, f"{n:012}"), path) for n, path in saved]
                entries.clear()
            else:
                self._take(folder, entries, named, paths)
        self.files = [path for _, path in sorted(paths)]

    def _take(
        self,
        folder: str,
        entries: Sequence[os.DirEntry[str]],
        named: Container[str],
        paths: list[tuple[tuple[str, ...], Path]],
    ) -> None:
        """Find a folder's files, with what they are sorted by."""
        # Of a dataset's cache, the Arrow files alone are text.
        cache = any(entry.name.endswith(".arrow") for entry in entries)
        for entry in entries:
            path = Path(folder, entry.name)
            if _is_folder(entry):
                continue
            if not os.path.exists(path):
                raise _leads_nowhere(path)
            description = cache and entry.name in DESCRIPTIONS
            if _is_file(entry) and is_readable(path) and not description:
                paths.append((path.parts, path))
            elif str(path) not in named:
                self._left_out[kind_of_suffix(path) if _is_file(entry) else "no file"] += 1

    @property
    def left_out(self) -> str:
        """``3 files of other kinds were not read (.log 2, no suffix 1)``; empty if none was."""
        count = self._left_out.total()
        if not count:
            return ""
        kinds = [f"{kind} {times:,}" for kind, times in self._left_out.most_common(MOST_KINDS)]
        kinds += ["…"] * (len(self._left_out) > MOST_KINDS)
        what = f"{count:,} files of other kinds were" if count > 1 else "1 file of another kind was"
        return f"{what} not read ({', '.join(kinds)})"

    def notes(self, source: str) -> list[str]:
        """What the user is told of the walk."""
        notes = [
            f"{saved} was saved by datasets, and all of its splits are read; name the folder of "
            "one to read it alone"
            for saved in self._saved
        ]
        if self.left_out:
            them = "them" if self._left_out.total() > 1 else "it"
            notes.append(f"{source}: {self.left_out}: name {them} to read {them}")
        return notes


def _saved_splits(folder: Path, entries: Sequence[os.DirEntry[str]]) -> list[str]:
    path = folder / SAVED_SPLITS
    splits = read_json_object(path, ANEW).get("splits")
    known = {entry.name for entry in entries if _is_folder(entry)}
    if not isinstance(splits, list) or not splits or not all(name in known for name in splits):
        raise InputError(
            f"{path} doesn't name the folders of splits beside it; copy the whole dataset again, "
            "or name its .arrow files"
        )
    return splits


def _saved_files(folder: Path, entries: Sequence[os.DirEntry[str]]) -> list[Path]:
    """The Arrow files of a saved dataset, in their order."""
    path = folder / SAVED_DATASET[0]
    state = read_json_object(path, ANEW)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{path} chooses rows by an index, as old versions of datasets saved them; load it "
            "there and save it again with flatten_indices()"
        )
    known = {entry.name for entry in entries if _is_file(entry)}
    listed = state.get("_data_files")
    files = []
    for entry in listed if isinstance(listed, list) else []:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in known:
            raise InputError(
                f"{path} names {name!r}, which isn't beside it; copy the whole dataset again"
            )
        files.append(folder / name)
    if not files:
        raise InputError(f"{path} names no data files; {ANEW}")
    return files


def _all_of(source: str, matches: Sequence[str]) -> Found:
    """The files that a pattern matches, and those of the folders that it matches."""
    folders = [match for match in matches if os.path.isdir(match)]
    named = {match for match in matches if not os.path.isdir(match)}
    for name in sorted(named):
        if not os.path.exists(name):
            raise _leads_nowhere(Path(name))
    walk = _Walk(folders, named)
    names = sorted(named.union(map(str, walk.files)))
    return Found([Path(name) for name in names], walk.notes(source))


def _matches(base: str, parts: tuple[str, ...]) -> Iterator[str]:
    """What a pattern matches below a folder, as a shell reads it; empty is the current folder."""
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if first == EVERY_LEVEL:
        for folder, entries in _tree([base]):
            if rest:
                yield from _matches(folder, rest)
            else:
                files = (entry for entry in entries if not _is_folder(entry))
                yield from (os.path.join(folder, entry.name) for entry in files)
    elif glob.escape(first) != first:
        for entry in _scan(base):
            hidden = entry.name.startswith(".") and not first.startswith(".")
            if not hidden and fnmatch(entry.name, first) and (not rest or _is_folder(entry)):
                yield from _matches(os.path.join(base, entry.name), rest)
    elif os.path.lexists(path := os.path.join(base, first)):
        yield from _matches(path, rest)
