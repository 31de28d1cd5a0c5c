"""Rows as a table: dictionaries, a CSV file, a data frame of pandas."""

from __future__ import annotations

import csv
import importlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfedpure.core.errors import MissingExtraError
from medfedpure.core.storage import write_bytes

Columns = Mapping[str, Sequence[Any]]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


class Tabular:
    """What can be shown as a table; one method to write: `columns`."""

    @abstractmethod
    def columns(self) -> Columns:
        """Plain values by column, all of one length."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain values for each row."""
        columns = self.columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_csv(self, path: str | Path) -> None:
        """Write `rows()` as CSV, whole or not at all; see `csv_text`.

        Raises:
            ArtifactError: the file cannot be written; the text says why.
        """
        write_bytes(Path(path), csv_text(self.columns()).encode(errors="backslashreplace"))

    def to_dataframe(self) -> Any:
        """`rows()` as a `pandas.DataFrame`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingExtraError(
                "a data frame needs pandas: pip install pandas; rows() and to_csv() need nothing"
            ) from error
        return pandas.DataFrame(dict(self.columns()))


def csv_text(columns: Columns) -> str:
    """A head and lines that end with a line feed; None is empty.

    Text that a spreadsheet would run as a formula, as it begins with =, +, -, @, a tab or a carriage return, has a ' in
    front. Names of files, classes and plugins may come from anybody.
    """
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")  # with "\n" alone a carriage return would stand unquoted
    writer.writerow([_harmless(head) for head in columns])
    writer.writerows([_harmless(value) for value in row] for row in zip(*columns.values(), strict=True))
    return "".join(lines)


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def columns_of(rows: Sequence[Mapping[str, Any]], otherwise: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Dictionaries as columns, None where one lacks a key; `otherwise` are the heads of no rows."""
    heads = dict.fromkeys(key for row in rows for key in row) or dict.fromkeys(otherwise)
    return {head: [row.get(head) for row in rows] for head in heads}


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
