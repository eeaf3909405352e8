"""Packages of the extra `geo`, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError


def geo(package: str, path: Path, what: str) -> Any:
    """A package of the extra `geo`.

    Args:
        package: "rasterio", "geopandas", "pyproj" or "shapely", or a module of one.
        path: file that needs it, for the message.
        what: what the file is, such as "a GeoTIFF".

    Raises:
        DataError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DataError(
            f"{path}: {what} needs {package.partition('.')[0]}. Install the extra: pip install "
            "medsam_tune[geo]."
        ) from error
