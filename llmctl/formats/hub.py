"""The Hugging Face Hub: models to and from there, through its own client, which honours HF_HOME,
HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.errors import InputError, UsageError
from llmctl.formats.gguf.parts import parts_beside

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME."""
HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.gguf)")
"""A file of one."""
WANTED_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.safetensors")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.index.json")
"""Taken where there are no safetensors."""
UNWANTED_FILES = ("original/*", "onnx/*", "openvino/*", "*.onnx*", ".*")


def download(source: str, revision: str | None = None) -> Path:
    """The folder, or the file, of a model on the Hub, from the cache where it is there; with a file
    that is one of several parts of a model come all of them.

    Raises UsageError without the client, InputError where there is no such model, it isn't to be
    had, or the Hub can't be reached.
    """
    with _told(source):
        from huggingface_hub import hf_hub_download, snapshot_download

        if match := HUB_FILE.fullmatch(source):
            path = Path(hf_hub_download(match[1], match[2], revision=revision))
            # The others of the same commit, whatever comes to the branch meanwhile.
            commit = path.parents[match[2].count("/")].name
            for name in parts_beside(match[2]):
                hf_hub_download(match[1], name, revision=commit)
            return path
        ignore = list(UNWANTED_FILES)
        folder = Path(
            snapshot_download(
                source, revision=revision, allow_patterns=list(WANTED_FILES), ignore_patterns=ignore
            )
        )
        if not any(folder.glob("*.safetensors")):
            patterns = [*WANTED_FILES, *PICKLED_WEIGHTS]
            folder = Path(
                snapshot_download(
                    source, revision=revision, allow_patterns=patterns, ignore_patterns=ignore
                )
            )
        return folder


def upload(path: Path, repository: str) -> str:
    """Upload a file or a folder; returns the repository's address. A new one is private.

    Raises UsageError for a name that can't be one, or without the client, InputError where the Hub
    refuses it or can't be reached.
    """
    if REPOSITORY.fullmatch(repository) is None:
        raise UsageError(f"--push {repository}: give a repository of the Hub as OWNER/NAME")
    with _told(repository):
        from huggingface_hub import HfApi

        api = HfApi()
        address = str(api.create_repo(repository, exist_ok=True, private=True))
        if path.is_dir():
            api.upload_folder(repo_id=repository, folder_path=path)
        else:
            api.upload_file(repo_id=repository, path_or_fileobj=path, path_in_repo=path.name)
        return address


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turns the client's errors into one sentence each."""
    try:
        yield
    except ImportError as error:
        if not str(error.name).startswith("huggingface_hub"):
            raise
        raise UsageError(
            f"{repository} is on the Hugging Face Hub, for which the package huggingface_hub is "
            "needed; install it with: pip install 'llmctl[export]'"
        ) from None
    except Exception as error:  # httpx's, requests' and its own, by version
        kind = type(error).__name__
        told = {
            "RepositoryNotFoundError": "there is no such repository, or it is not yours to see "
            "(HF_TOKEN)",
            "GatedRepoError": "its owners want its terms accepted first, on its page, and HF_TOKEN "
            "of the account that did so",
            "RevisionNotFoundError": "it has no such revision",
            "EntryNotFoundError": "it has no such file",
            "RemoteEntryNotFoundError": "it has no such file",
            "LocalEntryNotFoundError": "it is not in the cache (HF_HOME), and the Hub can't be "
            "reached or HF_HUB_OFFLINE is set",
            "OfflineModeIsEnabled": "it is not in the cache (HF_HOME), and HF_HUB_OFFLINE is set",
            "HFValidationError": "that can't be a repository's name",
        }
        reason = told.get(kind, f"{kind}: {' '.join(str(error).split())[:200]}")
        raise InputError(f"{repository} on the Hugging Face Hub: {reason}") from None
