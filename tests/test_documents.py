"""The documents say what is so: what they name is there, and their commands run."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from llmctl.cli.app import COMMANDS, app
from llmctl.cli.reference import insert, reference
from llmctl.config import ALIASES
from llmctl.models import ARCHITECTURES
from tests.once import made_once
from tests.run import llmctl
from tests.test_rooms import FLOORS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HOUSE = ROOT / "llmctl" / "README.md"
REFERENCE = ROOT / "llmctl" / "cli" / "README.md"
GUIDES = sorted((ROOT / "recipes").glob("*.md"))
RESULTS = sorted((ROOT / "tests" / "benchmarks").glob("*.md"))
DOCUMENTS = [README, HOUSE, REFERENCE, ROOT / "data" / "README.md", *GUIDES, *RESULTS]

README_BYTES, GUIDE_BYTES = 12_000, 6_000
"""What a newcomer reads in five minutes, and what somebody reads who wants to do one thing."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=named)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """The commands between ```bash and ```."""
    return re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands in the text between backticks, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text))]


def lines_of(path: Path) -> list[str]:
    """The commands of the document's blocks, in their order, comments among them."""
    return [
        line
        for block in blocks(text_of(path))
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


@cache
def options() -> dict[str, set[str]]:
    """The options of each command."""
    group: Any = typer.main.get_command(app)
    return {
        name: {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
        for name, command in group.commands.items()
    }


@cache
def keys() -> set[str]:
    """What ``--set`` takes, of any command."""
    return {*re.findall(r"^\| `([a-z][\w.]*)` \|", reference(), flags=re.MULTILINE), *ALIASES}


# What is named is there


@every_document
def test_every_file_that_is_named_is_there(path: Path):
    text = text_of(path)
    files = r"\b(?:llmctl|recipes|tests|data)/[\w./-]+\.(?:sh|py|md|svg|toml)\b"
    for file in re.findall(files, text):
        assert (ROOT / file).is_file(), file
    for module in re.findall(r"-m (tests\.[\w.]*\w|llmctl\.[\w.]*\w)", text):
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


def anchor(heading: str) -> str:
    """The address of a heading on its page."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.replace(" ", "-")


@every_document
def test_every_link_leads_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(path))):
        file, _, place = target.partition("#")
        page = (path.parent / file) if file else path
        assert page.is_file(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", without_blocks(text_of(page)), flags=re.MULTILINE)
            assert place in map(anchor, headings), target


def said_options(words: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][\w-]*", words)


OTHERS = re.compile(r"^(lm_eval|pip|python|bash|torchrun|sbatch)\b|transformers\.")
"""Beginnings of what is not ours to take options from."""
GLOBAL = {"--help", "--version", "--debug", "--install-completion"}


@every_document
def test_every_command_and_option_that_is_named_exists(path: Path):
    text = text_of(path)
    known = set().union(*options().values(), GLOBAL)
    if path in RESULTS:
        known.update(*(said_options(text_of(script)) for script in path.parent.glob("*.py")))
    for words in [*spans(text), *lines_of(path)]:
        words = words.partition(" # ")[0]
        for name, rest in re.findall(r"\bllmctl ([a-z]+)\b([^`|]*)", words):
            assert name in COMMANDS, words
            assert set(said_options(rest)) <= options()[name], words
        if "llmctl " not in words and not OTHERS.search(words):
            assert set(said_options(words)) <= known, words


@every_document
def test_every_option_of_a_script_exists(path: Path):
    """Of the benchmarks and the recipes: it stands in their source."""
    for words in [*spans(text_of(path)), *lines_of(path)]:
        script = re.search(r"\b(?:python (?:-m )?)(tests[\w./]+)", words)
        if script is None:
            continue
        name = script[1].removesuffix(".py").replace(".", "/")
        place = ROOT / f"{name}.py"
        source = text_of(place if place.is_file() else ROOT / name / "__main__.py")
        for option in said_options(words[script.end() :]):
            assert option == "--help" or option.strip("-").replace("-", "_") in source.replace(
                "-", "_"
            ), words


FILES = (".json", ".jsonl", ".csv", ".safetensors", ".txt", ".py", ".md", ".toml", ".sh")


@every_document
def test_every_field_that_is_named_exists(path: Path):
    tables = "|".join(sorted({key.partition(".")[0] for key in keys() if "." in key}))
    for words in [*spans(text_of(path)), *lines_of(path)]:
        for key in re.findall(rf"(?<![\w./])(?:{tables})\.[a-z]\w*", words):
            assert key in keys() or key.endswith(FILES), words
        for key in re.findall(r"--set ([a-z][\w.]*)", words):
            assert key in keys(), words


# Commands run


def runnable(path: Path) -> list[str]:
    return [line for line in lines_of(path) if "llmctl " in line.partition("#")[0]]


SHORT = {"training.max_steps": "2", "training.precision": "fp32"}
SMALL = {**SHORT, "model.hidden_size": "32", "model.num_heads": "2", "training.batch_size": "2",
         "data.eval_batches": "1"}  # fmt: skip
SMALLER = {
    "pretrain": SMALL,
    "plan": SMALL,
    "finetune": SHORT,
    "sweep": {**SMALL, "training.max_steps": "6"},
}
"""Fields by which a command trains in seconds, where it doesn't set them itself."""


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def add_files(folder: Path, corpus: Path, labelled: Path, sayings: Path) -> None:
    """What the documents' commands find beside them."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    stories = corpus.read_text().splitlines()
    for path, text in {
        **{f"corpus/{n}.txt": "\n".join(stories[n::30]) for n in range(30)},
        "reviews.csv": labelled.read_text(),
        "test.csv": "\n".join(labelled.read_text().splitlines()[:41]) + "\n",
        "alpaca.json": json.dumps([json.loads(line) for line in sayings.read_text().splitlines()]),
        "prompts.txt": "The ship\nThe cows\n",
        "pairs.csv": "query,passage\n" + "".join(f"{a},{b}\n" for a, b in pairwise(stories)),
        "test-pairs.csv": "query,passage\n" + "".join(f"{s},{s[:9]}\n" for s in stories[:9]),
        **{
            f"{name}.csv": "text,stars\n" + "".join(f"{s},{n % 5}\n" for n, s in enumerate(part))
            for name, part in {"ratings": stories[:40], "more-ratings": stories[40:60]}.items()
        },
        **{
            f"{name}.conll": "\n".join(f"the O\n{s.split()[1]} B-X\n. O\n" for s in part)
            for name, part in {"train": stories[:40], "test": stories[40:60]}.items()
        },
        "blimp/wh_island.jsonl": "".join(
            json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n"
            for good, bad in pairwise(stories[:4])
        ),
        "crows.csv": "sent_more,sent_less,stereo_antistereo,bias_type\n"
        + "".join(f"{a},{b},stereo,age\n" for a, b in pairwise(stories[:4])),
        "terms.tsv": "ship\ttram\tthings\n",
        "subjects.csv": "text,labels\n"
        + "".join(f"{s},{'|'.join('abc'[: n % 4])}\n" for n, s in enumerate(stories[:40])),
        "templates.txt": "{mask}: {text}\n{text} About the {mask}.\n",
        **{
            f"glue/SST-2/{part}.tsv": "sentence\tlabel\n"
            + "".join(f"{s}\t{n % 2}\n" for n, s in enumerate(stories[:20]))
            for part in ("train", "dev")
        },
        "notes.csv": "text\n" + "\n".join(stories[:9]) + "\n",
        "train.en": "\n".join(stories[:40]),
        "train.de": "\n".join(stories[:40]).upper(),
        "test.en": "\n".join(stories[40:44]),
        "test.de": "\n".join(stories[40:44]).upper(),
        "preferences.jsonl": json_lines(
            {"prompt": f"Say {n}.", "chosen": s[:20], "rejected": s[20:50]}
            for n, s in enumerate(stories[:30])
        ),
        "thumbs.jsonl": json_lines(
            {"prompt": f"Say {n}.", "completion": s[:20], "label": n % 2 == 0}
            for n, s in enumerate(stories[:30])
        ),
        "sums.jsonl": json_lines({"prompt": f"{n}+2=", "answer": n + 2} for n in range(30)),
        "rewards.py": "def brief(answer, row):\n    return 1 / (1 + len(answer))\n",
        "workspace/tasks/stdlib-train.csv": labelled.read_text(),
        "workspace/tasks/stdlib-test.csv": "\n".join(labelled.read_text().splitlines()[:13]) + "\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def smaller(words: list[str]) -> list[str]:
    if "ngram" in words:
        return []
    fields = SHORT if "--from" in words else SMALLER.get(words[0], {})
    given = " ".join(words)
    return [word for key in fields if f"{key}=" not in given
            for word in ("--set", f"{key}={fields[key]}")]  # fmt: skip


def run(folder: Path, line: str) -> None:
    """A command as it stands, but for the size of what it trains."""
    said, _, command = line.rpartition(" | ")
    words = shlex.split(command, comments=True)
    several = words[0] == "torchrun" or "--nproc" in words
    words = words[words.index("llmctl") + 1 :]
    if words[0] in SMALLER:
        words += smaller(words)
    if several:
        llmctl(folder / "workspace", *words, *([] if "--nproc" in words else ["--nproc", 2]))
        return
    with pytest.MonkeyPatch.context() as patch:
        if words[0] == "serve":  # it listens, where it may, and ends before the first request
            from llmctl.serving import server

            listen = server.listen
            patch.setattr(server, "listen", lambda config: listen(config.replace(port=0)))
            patch.setattr(server.Server, "run", lambda self, sockets: None)
        result = CliRunner().invoke(app, words, input=f"{said.removeprefix('echo ')}\n")
    assert result.exit_code == 0, f"{line}\n{result.output}"


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[None]:
    """In a folder, whose workspace is the default one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LLMCTL_WORKSPACE", raising=False)
        yield


@pytest.fixture(scope="session")
def toured(
    tmp_path_factory: pytest.TempPathFactory,
    corpus_file: Path,
    labelled_file: Path,
    sayings_file: Path,
) -> Path:
    """A folder in which the README's commands have run, and what the guides name besides."""
    pytest.importorskip("sklearn")

    def tour(folder: Path) -> None:
        add_files(folder, corpus_file, labelled_file, sayings_file)
        commands = runnable(README)
        assert len(commands) > 10
        with beside(folder):
            for line in commands:
                run(folder, line)
            run(folder, "llmctl pretrain --arch llama --shards prose --name gpt-code")

    return made_once(tmp_path_factory, "toured", tour)


def test_every_command_of_the_readme_runs(toured: Path):
    runs = {path.name for path in (toured / "workspace" / "runs").iterdir()}
    assert runs >= {"bert-mine", "reviews-bert-mine", "ngram-prose", "alpaca-nanochat-prose"}


@pytest.mark.parametrize("path", [path for path in GUIDES if runnable(path)], ids=named)
def test_every_command_of_a_guide_runs(path: Path, toured: Path, tmp_path: Path):
    folder = tmp_path / "beside"
    shutil.copytree(toured, folder, symlinks=True)
    with beside(folder):
        for line in runnable(path):
            run(folder, line)


# What must be said is said


def test_the_readme_is_read_in_five_minutes():
    assert len(README.read_bytes()) <= README_BYTES


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_a_guide_is_short(path: Path):
    assert len(path.read_bytes()) <= GUIDE_BYTES


def test_the_table_of_commands_is_complete():
    rows = re.findall(r"^\| (`llmctl [^|]*) \|", text_of(README), flags=re.MULTILINE)
    commands = re.findall(r"`(?:llmctl )?(\w+)`", " ".join(rows))
    assert len(commands) == len(set(commands))
    assert set(commands) == set(COMMANDS)


def test_every_architecture_is_in_the_tables():
    for path in (README, ROOT / "recipes" / "models.md"):
        table = text_of(path).partition("| `--arch` |")[2].partition("\n\n")[0]
        firsts = re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE)
        named = re.findall(r"`([\w-]+)`", " ".join(firsts))
        assert sorted(named) == sorted({*ARCHITECTURES, "ngram"}), path


def test_every_recipe_has_a_guide():
    for script in (ROOT / "recipes").glob("*.sh"):
        if script.read_text().startswith("#!"):
            guide = script.with_suffix(".md")
            assert f"bash recipes/{script.name}" in text_of(guide), script
            assert f"[`{script.name}`]({guide.name})" in text_of(ROOT / "recipes" / "README.md")


def test_every_document_is_found_from_the_readme():
    found, new = {README}, [README]
    while new:
        page = new.pop()
        for target in re.findall(r"\]\(([^)#\s]+\.md)", text_of(page)):
            other = (page.parent / target).resolve()
            if other not in found:
                found.add(other)
                new.append(other)
    assert set(DOCUMENTS) - found == {ROOT / "data" / "README.md"}


def test_nothing_is_said_twice():
    said: dict[str, Path] = {}
    for path in DOCUMENTS:
        if path == REFERENCE:
            continue
        text = " ".join(without_blocks(text_of(path)).split())
        for sentence in re.split(r"(?<=[.:;|]) ", text):
            if len(sentence) > 80:
                assert sentence not in said, (sentence, said[sentence], path)
                said[sentence] = path


def test_the_readmes_figures_are_those_of_the_results():
    results = " ".join(map(text_of, RESULTS))
    section = text_of(README).partition("## Three results")[2].partition("\n## ")[0]
    figures = re.findall(r"(?<![\w.–-])\d+[.,]\d+(?![\w.])", section)
    assert len(figures) > 20
    assert not [figure for figure in figures if figure not in results]


def test_every_room_is_on_the_map():
    rooms = re.findall(r"^  (\w+)/  ", text_of(HOUSE), flags=re.MULTILINE)
    assert set(rooms) == {
        path.name for path in (ROOT / "llmctl").iterdir() if (path / "__init__.py").exists()
    }


def test_the_floors_are_those_that_hold():
    rows = re.findall(r"^\| (\d+) \| ([a-z, ]+) \|$", text_of(HOUSE), flags=re.MULTILINE)
    said = [set(rooms.split(", ")) for number, rooms in rows if int(number) <= len(FLOORS)]
    assert said[: len(FLOORS)] == FLOORS


def test_the_exit_codes_are_those_of_the_errors():
    from llmctl import errors

    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.LlmctlError)
    }
    section = text_of(HOUSE).partition("## Exit codes")[2].partition("\n## ")[0]
    said = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE)
            for code in row.split(", ")}  # fmt: skip
    assert codes <= said


# The reference


def test_the_reference_is_that_of_the_app():
    page = text_of(REFERENCE)
    assert insert(page) == page, "run: python -m llmctl.cli.reference llmctl/cli/README.md"


NOT_BY_ITSELF = ("Of ", "As ", "…", "And ", "Likewise", "The same", "Its ", "Their ", "Unset")


def test_the_reference_says_what_every_key_and_option_is():
    """In a sentence or a noun phrase that needs no other row to be understood."""
    rows = re.findall(r"^\| `.*\| (?:One of: [^.]*\. )?(.*) \|$", reference(), flags=re.MULTILINE)
    assert len(rows) > 100
    for what in rows:
        assert re.fullmatch(r"[A-Z].*\.", what), what
        assert not what.startswith(NOT_BY_ITSELF), what
