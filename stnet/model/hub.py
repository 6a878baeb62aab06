"""Models by name: `hf://owner/name` of the Hugging Face Hub, or of a server that speaks like it (`HF_ENDPOINT`)."""

import re
import tempfile
from pathlib import Path
from types import ModuleType

from stnet.errors import CheckpointError
from stnet.model.weight_files import EXPORTED

SCHEME = "hf://"
CARD = "README.md"

_NAME = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(@(?P<revision>[\w./-]+))?")


def download(address: str) -> Path:
    """Return the weights behind `hf://owner/name` or `hf://owner/name@revision`, downloaded once.

    With HF_HUB_OFFLINE=1 what was downloaded before is used. Files are safetensors, which run nothing.

    Raises:
        CheckpointError: it is no such name, or cannot be downloaded.
    """
    match = _NAME.fullmatch(address.removeprefix(SCHEME))
    if not match:
        raise CheckpointError(f"{address}: expected {SCHEME}owner/name, or {SCHEME}owner/name@revision")
    hub = _hub(address)
    errors = hub.errors
    try:
        path = hub.hf_hub_download(f"{match['owner']}/{match['name']}", EXPORTED, revision=match["revision"])
    except (
        hub.errors.EntryNotFoundError,
        hub.errors.RepositoryNotFoundError,
        hub.errors.RevisionNotFoundError,
    ) as error:
        raise CheckpointError(
            f"{address}: no such model, revision, or {EXPORTED} in it; where it is private log in by `hf auth login`"
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{address}: cannot be downloaded ({reason}); check the connection, or give a downloaded folder"
        ) from error
    return Path(path)


def upload(weights: bytes, card: str, name: str, *, private: bool, revision: str | None, message: str) -> str:
    """Write a model to the Hub, made there if need be; return the address to load it by.

    Args:
        weights: the contents of its file.
        card: its description.
        name: owner/name.
        private: a model that is made is for its owner alone.
        revision: the branch that it goes to; None: the main one.
        message: of the commit.

    Raises:
        CheckpointError: it cannot be written.
    """
    if not (match := _NAME.fullmatch(name)) or match["revision"]:
        raise CheckpointError(f"{name}: expected owner/name")
    hub = _hub(name)
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="stnet-") as folder:
            Path(folder, EXPORTED).write_bytes(weights)
            Path(folder, CARD).write_text(card, encoding="utf-8")
            done = hub.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except (hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{name}: cannot be written to the Hub ({reason}); check the name and log in by `hf auth login`"
        ) from error
    return f"{SCHEME}{name}@{done.oid}"


def _hub(name: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(f"{name}: needs huggingface_hub; pip install 'stnet[hub]'") from error
    return huggingface_hub
