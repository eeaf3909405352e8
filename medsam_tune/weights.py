"""Published checkpoints: fetched when asked for, never otherwise; kept only if their hash fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from monai.apps.utils import HashCheckError, check_hash, download_url

from medsam_tune.data.checks import DataError
from medsam_tune.files import written_whole


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody else hosts.

    Attributes:
        file: its name.
        url: where it lies.
        sha256: of its bytes.
    """

    file: str
    url: str
    sha256: str


def published(bundle: Path) -> dict[str, Published]:
    """Model name -> checkpoint, from a bundle's `large_files.yml`, MONAI's list of such files.

    Raises:
        DataError: the bundle has none.
    """
    listing = bundle / "large_files.yml"
    if not listing.is_file():
        raise DataError(f"{listing}: is not there; expected the bundle's list of checkpoints.")
    entries = yaml.safe_load(listing.read_text())["large_files"]
    return {
        Path(entry["path"]).parent.name: Published(
            Path(entry["path"]).name, entry["url"], entry["hash_val"]
        )
        for entry in entries
    }


def download(name: str, bundle: Path, folder: Path) -> Path:
    """The checkpoint of a model, in a folder; one that is there already is checked and kept.

    Args:
        name: of the model.
        bundle: folder with `large_files.yml`.
        folder: where it goes, made if absent.

    Raises:
        DataError: unknown name, a file of that name with other bytes, no way to the server, or
            other bytes than the published ones; then nothing is left.
    """
    known = published(bundle)
    if name not in known:
        raise DataError(f"no checkpoint of {name!r} is listed; listed: {', '.join(known)}.")
    entry = known[name]
    path = folder / entry.file
    if path.exists():
        if not check_hash(path, entry.sha256, "sha256"):
            raise DataError(
                f"{path}: {path.stat().st_size} bytes whose sha256 is not {entry.sha256}, the "
                f"published {name}'s. Delete it and run this again, or choose another --output."
            )
        return path
    try:
        with written_whole(path) as beside:
            download_url(entry.url, beside, entry.sha256, "sha256")
    except HashCheckError as error:
        raise DataError(
            f"{entry.url}: what came has another sha256 than {entry.sha256}; it was not kept. "
            "Try again; a proxy may have answered in the server's place."
        ) from error
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{entry.url}: cannot be fetched ({error}). Fetch it on another machine, put it at "
            f"{path} and run this again; its sha256 is {entry.sha256}."
        ) from error
    return path
