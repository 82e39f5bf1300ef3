"""Facts by relation, with several ways to say each: our own small set, or T-REx from STUDFINDER_DATA."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from studfinder.errors import StudfinderError, Unavailable, unknown
from studfinder.records.outside import json_lines

BUILT_IN = "studfinder-facts-1"

# Wikidata's relations as T-REx files name them (Elsahar et al. 2018); the wording is ours.
_TREX = {
    "P19": ("{s} was born in", "The birthplace of {s} is", "{s} originally came from"),
    "P27": ("{s} is a citizen of", "The passport of {s} was issued by", "{s} holds the citizenship of"),
    "P30": ("{s} is located on the continent of", "{s} belongs to the continent of", "{s} is a part of"),
    "P36": ("The capital of {s} is", "The capital city of {s} is", "{s} is governed from the city of"),
    "P37": ("The official language of {s} is", "The main language spoken in {s} is", "Most people in {s} speak"),
    "P103": ("The native language of {s} is", "{s} grew up speaking", "The mother tongue of {s} is"),
    "P106": ("{s} works as a", "By profession, {s} is a", "The occupation of {s} is"),
    "P136": ("The music of {s} is best described as", "{s} plays", "The genre of {s} is"),
    "P176": ("{s} is produced by", "The maker of {s} is", "{s} is manufactured by"),
    "P178": ("{s} is developed by", "The developer of {s} is", "{s} was created by"),
    "P413": ("{s} plays in the position of", "On the field, {s} is a", "The position of {s} is"),
    "P449": ("{s} was first broadcast by", "{s} was originally shown on", "The network that aired {s} is"),
    "P1303": ("{s} plays the", "The instrument of {s} is the", "{s} is known for playing the"),
}

DOMAINS = {
    "cities": ("P36", "P37"),
    "sports": ("P413",),
    "art": ("P136", "P1303"),
    "technology": ("P176", "P178"),
    "celebrities": ("P19", "P27", "P103", "P106"),
}
"""The domains of Jin et al. 2025 (arXiv 2502.01563), by relations of T-REx."""


@dataclass(frozen=True)
class Relation:
    """A relation: ways to say it that end where the object follows, and its facts.

    Attributes:
        name: e.g. "capital" or "P36".
        templates: with {s} for the subject.
        facts: (subject, object); a subject may have several objects.
    """

    name: str
    templates: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """All different objects, sorted."""
        return tuple(sorted({obj for _, obj in self.facts}))

    def objects_of(self, subject: str) -> frozenset[str]:
        """Every object that is right for a subject."""
        return frozenset(obj for name, obj in self.facts if name == subject)


def relations(source: str = "built-in") -> tuple[str, tuple[Relation, ...]]:
    """Facts by source: its name for print, and its relations.

    Args:
        source: "built-in" (ours: general knowledge, about 230 facts of nine relations) or "trex" (the files
            facts/P*.jsonl of STUDFINDER_DATA), or one of DOMAINS, which are parts of the latter.

    Raises:
        StudfinderError: there is no such source, or its files are not there; there is no silent substitute.
    """
    if source == "built-in":
        return BUILT_IN, _built_in()
    if source != "trex" and source not in DOMAINS:
        raise unknown("there are no facts", source, ("built-in", "trex", *DOMAINS))
    folder = os.environ.get("STUDFINDER_DATA")
    found = sorted(Path(folder, "facts").glob("P*.jsonl")) if folder else []
    if not found:
        raise Unavailable(
            "T-REx is not here",
            expected="facts/P36.jsonl and others in the folder STUDFINDER_DATA",
            do="Set STUDFINDER_DATA, or use the built-in facts",
        )
    chosen = DOMAINS.get(source, tuple(_TREX))
    return "T-REx (STUDFINDER_DATA)", tuple(_read(path) for path in found if path.stem in chosen)


@cache
def _built_in() -> tuple[Relation, ...]:
    content = json.loads(files("studfinder.texts").joinpath("data/relations.json").read_text("utf-8"))
    return tuple(
        Relation(name, tuple(entry["templates"]), tuple((s, o) for s, o in entry["pairs"]))
        for name, entry in content.items()
    )


def _read(path: Path) -> Relation:
    facts = []
    for number, row in json_lines(path, name="facts"):
        if not {"subject", "object"} <= row.keys():
            raise StudfinderError(f"facts {path} cannot be read (line {number} has no subject, or no object)")
        facts.append((str(row["subject"]), str(row["object"])))
    return Relation(path.stem, _TREX[path.stem], tuple(facts))
