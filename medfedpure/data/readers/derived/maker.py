"""What a derived file says of how it was made."""

from __future__ import annotations

from dataclasses import dataclass

from medfedpure.data.readers.pseudonyms import Pseudonyms


@dataclass(frozen=True)
class Maker:
    """Who made a derived file, of what kind of source, in words that name nobody.

    Attributes:
        told: how, in printable ASCII of at most 900 characters.
        version: of the software.
        name: of the file that is made, which no other one has in its folder.
        pseudonyms: under which UIDs are replaced, those that are equal by equal ones.
        patient: a pseudonym to be written; None writes none.
    """

    told: str
    version: str
    name: str
    pseudonyms: Pseudonyms
    patient: str | None = None
