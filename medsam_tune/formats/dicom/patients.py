"""Patients as keyed hashes, which tell patients apart and say nothing of who they are.

A plain hash of a short number is found by trying all numbers. These hashes need a secret, which
stays beside the datalist and is as private as the scans.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from medsam_tune.errors import DataError

SECRET_NAME = ".medsam_tune.key"
SECRET_BYTES = 32

_OF_PROCESS = secrets.token_bytes(SECRET_BYTES)


def patient_key(value: str, secret: bytes | None = None) -> str:
    """HMAC-SHA256 of a patient's id, 16 hexadecimal digits; empty for an empty id.

    Args:
        value: PatientID, or what stands for it.
        secret: key of the hash. None takes one that this process made up: keys of one process can
            be compared with each other, and with no others.
    """
    key = _OF_PROCESS if secret is None else secret
    return hmac.new(key, value.encode(), "sha256").hexdigest()[:16] if value else ""


def secret_beside(datalist: Path) -> bytes:
    """The secret of the datalists of a folder; it is made where there is none.

    A later split into the same folder thus gives each patient the same key.

    Args:
        datalist: datalist in that folder; it need not be there yet.

    Returns:
        32 random bytes of `.medsam_tune.key`, which only its owner may read.

    Raises:
        DataError: the file holds something else, or cannot be read or written.
    """
    path = Path(datalist).parent / SECRET_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = path.read_bytes()
        else:
            secret = secrets.token_bytes(SECRET_BYTES)
            with os.fdopen(file, "wb") as out:
                out.write(secret)
    except OSError as error:
        raise DataError(
            f"{path}: the secret of the patients' keys cannot be read or written "
            f"({type(error).__name__}). Correct its permissions, or choose another folder."
        ) from error
    if len(secret) != SECRET_BYTES:
        raise DataError(
            f"{path}: holds {len(secret)} bytes; expected the {SECRET_BYTES} of a secret. Put the "
            "right file back; or delete it, and split again."
        )
    return secret
