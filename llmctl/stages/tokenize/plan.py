"""What the parts of some shards have in common: the plan that the first process to come makes, and
that every other compares itself with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llmctl import __version__
from llmctl.data.text.documents import Corpus, CorpusPart
from llmctl.errors import InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize.shards import TokenizerSummary, count_characters
from llmctl.stages.tokenize.stage import (
    Existing,
    TokenizeConfig,
    corpus_inputs,
    existing_tokenizer,
    open_corpus,
    tokenizer_for,
)
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import FileRecord, now
from llmctl.workspace.parts import PartsFolder, PartsPlan, PlannedFile, write_plan


@dataclass
class PartJob:
    """What the parts of some shards are to be made from, as one process has been told."""

    workspace: Workspace
    sources: Sequence[str]
    config: TokenizeConfig
    name: str
    force: bool = False
    reporter: Reporter = field(default_factory=Reporter)

    def __post_init__(self) -> None:
        self.parts = PartsFolder(self.workspace, self.name)
        self.corpus: Corpus = open_corpus(self.sources, self.config, self.reporter)

    @cached_property
    def existing(self) -> Existing | None:
        """The tokenizer, if it is not to be learned."""
        return existing_tokenizer(self.workspace, self.config)

    def waiting(self) -> None:
        self.reporter.note(
            f"waiting for another process that prepares shards {self.name} or puts their parts "
            "together"
        )


def acquire_plan(job: PartJob, of: int, number: int | None = None) -> PartsPlan | Artefact:
    """The plan that all parts follow, made if there is none, or the shards if they are finished.

    number: the part whose files are compared with the plan; None for all of them.
    Raises UsageError for other options than the plan's, InputError naming a file that differs from
    it, unless the job is to begin anew (``force``).
    """
    job.workspace.prepare("shards")
    refused: PartsPlan | None = None
    while True:
        with job.parts.exclusive_lock(job.waiting):
            plan = _current_plan(job)
            if plan is not None:
                error = _difference(job, plan, of)
                if error is not None and not job.force:
                    raise error
                if error is not None or plan == refused:
                    plan = None
            if plan is None:
                return _finished_shards(job) or _new_plan(job, of)
        # Not in the turn: it takes as long as reading the files.
        changed = None if number and job.parts.has(number) else changed_file(job, plan, number)
        if changed is None:
            return plan
        if not job.force:
            raise changed
        refused = plan


def _current_plan(job: PartJob) -> PartsPlan | None:
    """The plan, unless shards made since have settled it; what is left without one goes."""
    try:
        plan = job.parts.plan()
    except InputError:
        if not job.force:
            raise
        plan = None
    if plan is not None and plan.replaces == _created(job):
        return plan
    job.parts.remove()
    return None


def _created(job: PartJob) -> str | None:
    """When the shards that are there were made."""
    if job.name not in job.workspace.names("shards"):
        return None
    return job.workspace.get("shards", job.name).manifest.created


def _finished_shards(job: PartJob) -> Artefact | None:
    inputs = corpus_inputs(job.corpus, job.sources, job.existing)
    identity = Identity.of("tokenize", job.config, inputs)
    return job.workspace.match("shards", job.name, job.name, identity, force=job.force)[1]


def _difference(job: PartJob, plan: PartsPlan, of: int) -> UsageError | InputError | None:
    """What is wrong with a plan, as far as can be seen without reading."""
    remedy = "or begin anew with --force on every part"
    under_way = f"the parts of shards {job.name} that are under way"
    if plan.parts != of:
        return UsageError(
            f"{under_way} are {plan.parts}, not {of}: go on with --part i/{plan.parts}, {remedy}"
        )
    defaults = job.config.defaults()
    for key, value in job.config.identity().items():
        # What the plan knows nothing of came later, and was as its default is.
        planned_value = plan.identity.get(key, defaults.get(key))
        if value != planned_value:
            return UsageError(
                f"{under_way} have {key} = {planned_value}, not {value}: give "
                f"every part the same options, {remedy}"
            )
    if plan.llmctl_version != __version__:
        return UsageError(
            f"{under_way} were begun by llmctl {plan.llmctl_version}, and this is {__version__}: "
            f"go on with that one, {remedy}"
        )
    tokenizers_given = [
        [record.digest for record in records if record.role == "tokenizer"]
        for records in (plan.inputs, [job.existing[1]] if job.existing else [])
    ]
    if tokenizers_given[0] != tokenizers_given[1]:
        return InputError(
            f"--tokenizer {job.config.tokenizer} has changed since {under_way} began; put it back "
            f"as it was, {remedy}"
        )
    names, planned = job.corpus.names, [file.name for file in plan.files]
    if len(names) != len(planned):
        more = len(names) > len(planned)
        longer, shorter = (names, set(planned)) if more else (planned, set(names))
        odd = next((name for name in longer if name not in shorter), longer[-1])
        return InputError(
            f"{odd} {'was not' if more else 'is no longer'} among the files of {under_way}; give "
            f"every part the same files, {remedy}"
        )
    for name, size, file in zip(names, job.corpus.sizes, plan.files, strict=True):
        if size != file.size:
            return InputError(
                f"{name} has {size} bytes, and had {file.size} when {under_way} began; put it back "
                f"as it was, {remedy}"
            )
    return None


def changed_file(job: PartJob, plan: PartsPlan, number: int | None) -> InputError | None:
    """An error that names a file, among those that a part reads, that isn't the plan's."""
    corpus = job.corpus
    read = range(len(corpus.names)) if number is None else corpus_part(job, plan, number).files
    for file in read:
        if corpus.file_digest(file) != plan.files[file].sha256:
            return InputError(
                f"{corpus.names[file]} has changed since the parts of shards {job.name} began (its "
                "SHA-256 differs); put it back as it was, or begin anew with --force on every part"
            )
    return None


def corpus_part(job: PartJob, plan: PartsPlan, number: int) -> CorpusPart:
    """The documents of a part."""
    return CorpusPart(job.corpus, number, plan.parts)


def _new_plan(job: PartJob, of: int) -> PartsPlan:
    """Learn the tokenizer and write down what all parts have in common, in one's turn."""
    job.parts.remove()
    corpus, config = job.corpus, job.config
    created = now()
    inputs = corpus_inputs(corpus, job.sources, job.existing)
    tokenizer, made_from = tokenizer_for(
        job.workspace, corpus, config, inputs, job.name, job.existing, job.force, job.reporter
    )
    vocabulary = TokenizerSummary.of(tokenizer)
    with job.parts.new_plan() as folder:
        tokenizer.save(folder / "tokenizer")
        plan = PartsPlan(
            parts=of,
            identity=config.identity(),
            inputs=inputs,
            made_from=made_from,
            fingerprint=Identity.of("tokenize", config, inputs).fingerprint,
            files=[
                PlannedFile(name=name, size=size, sha256=corpus.file_digest(number))
                for number, (name, size) in enumerate(zip(corpus.names, corpus.sizes, strict=True))
            ],
            tokenizer_kind=vocabulary.kind,
            tokenizer_digest=vocabulary.digest,
            vocab_size=vocabulary.size,
            tokenizer_files=FileRecord.below(folder / "tokenizer"),
            characters=(
                count_characters(corpus, of, job.reporter) if config.split == "tail" else None
            ),
            created=created,
            replaces=_created(job),
        )
        write_plan(folder, plan)
    return plan
