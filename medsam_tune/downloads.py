"""Downloads of published checkpoints; a file is kept only if its hash is right."""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import yaml
from monai.apps.utils import HashCheckError, check_hash, download_url

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole

# Seconds without an answer; a firewall that drops packets never answers.
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Published:
    """A checkpoint on somebody else's server.

    Attributes:
        file: name of the file.
        url: address of the file.
        hash_val: published hash of its bytes.
        hash_type: "sha256", or another kind that its host publishes and MONAI knows.
        size: bytes; None if unknown.
        options: options of `medsam-tune train` that use it, e.g. "--model vit_b".
    """

    file: str
    url: str
    hash_val: str
    hash_type: str
    size: int | None
    options: str

    @property
    def checksum(self) -> str:
        """The hash with its kind, e.g. "sha256 ec2df6..."."""
        return f"{self.hash_type} {self.hash_val}"


def published(bundle: Path) -> dict[str, Published]:
    """Read a bundle's `large_files.yml`, MONAI's list of large files: name -> checkpoint.

    Raises:
        DataError: the bundle has no list, or lists a file without a hash.
    """
    listing = bundle / "large_files.yml"
    if not listing.is_file():
        raise DataError(f"{listing}: is not there; expected the bundle's list of checkpoints.")
    content = yaml.safe_load(listing.read_text())
    details = content.get("details", {})
    known = {}
    for entry in content["large_files"]:
        path = Path(entry["path"])
        name = path.parent.name
        if not entry.get("hash_val"):  # MONAI would fetch it unchecked
            raise DataError(f"{listing}: {path} has no hash_val; give the sha256 of the file.")
        more = details.get(name, {})
        known[name] = Published(
            file=path.name,
            url=entry["url"],
            hash_val=entry["hash_val"],
            hash_type=entry.get("hash_type") or "sha256",
            size=more.get("bytes"),
            options=more.get("options", f"--model {name}"),
        )
    return known


def choose(name: str, bundle: Path) -> Published:
    """Find a checkpoint by its name.

    Raises:
        DataError: an unknown name; lists the known ones, with their sizes.
    """
    known = published(bundle)
    if name not in known:
        listed = ", ".join(
            key if entry.size is None else f"{key} ({entry.size / 2**20:.0f} MiB)"
            for key, entry in known.items()
        )
        raise DataError(f"no checkpoint of {name!r} is listed; listed: {listed}.")
    return known[name]


def download(entry: Published, folder: Path) -> tuple[Path, bool]:
    """Fetch a checkpoint into a folder; an existing file is checked and kept.

    Args:
        entry: checkpoint to fetch.
        folder: folder to write to, made if absent.

    Returns:
        path of the file, and True if it existed already.

    Raises:
        DataError: an existing file with other bytes; a folder that cannot be written to; an
            unreachable server; or a download with other bytes, which is not kept.
    """
    path = folder / entry.file
    if path.exists():
        if not check_hash(path, entry.hash_val, entry.hash_type):
            raise DataError(
                f"{path}: {path.stat().st_size} bytes that are not the published ones, "
                f"{_bytes(entry)}with {entry.checksum}. Delete it and run this again, or choose "
                "another --output."
            )
        return path, True
    _refuse_unwritable(folder)
    try:
        with written_whole(path) as beside, _timeout(), _quiet():
            download_url(entry.url, beside, entry.hash_val, entry.hash_type)
    except HashCheckError as error:
        raise DataError(
            f"{entry.url}: what came is not what was published, {_bytes(entry)}with "
            f"{entry.checksum}; it was not kept. Try again; a proxy may have answered instead of "
            "the server."
        ) from error
    except (OSError, RuntimeError, HTTPException) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"{path}: no space left; {_bytes(entry)}must fit into {tempfile.gettempdir()} "
                "first (set TMPDIR to use another folder), then into --output."
            ) from error
        raise DataError(
            f"{entry.url}: cannot be fetched ({str(error).strip()}). Fetch it on another machine, "
            f"put it at {path} and run this again; its {entry.hash_type} is {entry.hash_val}."
        ) from error
    return path, False


def _bytes(entry: Published) -> str:
    return "" if entry.size is None else f"{entry.size} bytes "


def _refuse_unwritable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: no such folder can be made ({error.strerror}); choose another --output."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written to; choose another --output.")


@contextmanager
def _timeout() -> Iterator[None]:
    """Set Python's time limit for new sockets, as MONAI's downloader has none of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to the error to say what failed; MONAI's downloader logs it to standard output."""
    logger = logging.getLogger("monai.apps")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
