"""Reading of initial conditions: tables of the linear power or of boxes, cubes of white noise."""

from __future__ import annotations

import csv
import hashlib
import io
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.places import split_name
from cosmoflow.storage.urls import absolute, damage, read_bytes, storage_errors, zarr_store

Floats = NDArray[np.float64]


def read_power_table(url: str) -> tuple[Floats, Floats, str]:
    """Read a table of the linear power.

    Parameters
    ----------
    url : str
        URL of a text file whose first two columns are k in h/Mpc and P in (Mpc/h)^3. Lines that
        start with # are comments.

    Returns
    -------
    k, power : (n,) float64
        Wavenumbers, h/Mpc, and power, (Mpc/h)^3.
    digest : str
        Digest of the content of the file.

    Raises
    ------
    StorageError, DataError
    """
    content = _read(url)
    try:
        table = np.loadtxt(io.BytesIO(content), dtype=np.float64, ndmin=2)
        k, power = table[:, 0], table[:, 1]
    except (ValueError, IndexError) as error:
        raise DataError(
            "the file is not a table of a power spectrum",
            where=url,
            value=str(error),
            limit="columns of numbers: k in h/Mpc, P in (Mpc/h)^3",
        ) from None
    return k, power, hashlib.sha256(content).hexdigest()[:16]


def read_box_table(url: str) -> list[dict[str, str]]:
    """Read a table of boxes.

    Parameters
    ----------
    url : str
        URL of a CSV file whose first line names its columns. Lines that start with # are comments.

    Returns
    -------
    list of dict
        The text in each column, for each row.

    Raises
    ------
    StorageError, DataError
    """
    try:
        # Spreadsheets write a mark of the byte order first.
        text = _read(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the table is not text", where=url, value=str(error)) from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = list(csv.reader(lines, skipinitialspace=True))
    names = [name.strip() for name in rows[0]] if rows else []
    if len(rows) < 2 or len(set(names)) < len(names):
        raise DataError(
            "the table has no rows, or names a column twice",
            where=url,
            value=f"{max(len(rows) - 1, 0)} rows; columns {', '.join(names)}",
            limit="a first line with the names of the columns, and a row for each box",
        )
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(names):
            raise DataError(
                "a row of the table has another number of columns than the first line",
                where=f"{url}, row {number}",
                value=len(row),
                limit=len(names),
            )
    return [dict(zip(names, map(str.strip, row), strict=True)) for row in rows[1:]]


def read_white_noise(url: str) -> NDArray[np.float32]:
    """Read a cube of white noise.

    Parameters
    ----------
    url : str
        URL of a ``.npy`` file or a zarr array.

    Returns
    -------
    (n, n, n) float32
        White noise, dimensionless.

    Raises
    ------
    StorageError, DataError
    """
    if url.rstrip("/").endswith(".npy"):
        try:
            values: Any = np.load(io.BytesIO(_read(url)), allow_pickle=False)
        except ValueError as error:
            raise DataError("the file is not a NumPy array", where=url, value=str(error)) from None
    else:
        with storage_errors(url), damage(url):
            array: Any = zarr.open_array(zarr_store(absolute(url), read_only=True), mode="r")
            values = array[:]
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        raise DataError(
            "white noise is a cube of real numbers",
            where=url,
            value=f"{values.dtype} {values.shape}",
            limit="(n, n, n)",
        )
    return np.ascontiguousarray(values, np.float32)


def _read(url: str) -> bytes:
    return read_bytes(*split_name(absolute(url)))


def white_noise_digest(noise: NDArray[np.float32]) -> str:
    """Return the digest of a cube of white noise."""
    return hashlib.sha256(noise.data).hexdigest()[:16]
