"""Claims of papers in tables: what held, what did not, and what could not be decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from studfinder.records import Cell, ClaimResult, Result, Table
from studfinder.report.cells import text
from studfinder.report.words import number

_VERDICTS = {"held": "held", "did not hold": "did not hold", "not decided": "could not be decided here"}


def claims_table(
    claims: Sequence[ClaimResult], title: str = "what the paper claims, and what was found"
) -> list[Table]:
    """A row for each claim and model; no table where there is no claim."""
    if not claims:
        return []
    named = any(one.model for one in claims)
    columns = ("claim", *(["model"] if named else []), "verdict", "number", "effect", "control", "smallest", "because")
    return [
        Table(
            title="what is claimed, and what was found",
            columns=columns,
            rows=tuple(_row(one, named) for one in claims),
            note="Number: the contrast that decides. Smallest: the smallest difference (where the number is a ratio: "
            "factor) that so many items could have shown.",
        )
    ]


def claims_overview(results: Sequence[Result]) -> list[Table]:
    """For each paper a row for each claim that its experiments judge, a column for each model."""
    papers: dict[str, dict[str, list[ClaimResult]]] = {}
    for result in results:
        for one in result.claims:
            papers.setdefault(result.paper, {}).setdefault(one.claim.says, []).append(one)
    return [_of_paper(paper, rows) for paper, rows in papers.items()]


def _of_paper(paper: str, rows: Mapping[str, Sequence[ClaimResult]]) -> Table:
    models = list(dict.fromkeys(one.model for found in rows.values() for one in found))
    cells = []
    for says, found in rows.items():
        of = {one.model: f"{_VERDICTS[one.verdict]}: {text(one.number)}" for one in found}
        cells.append((says, found[0].claim.decides, *(of.get(model) for model in models)))
    return Table(
        title=f"arXiv {paper}" if paper[:1].isdigit() else paper,
        columns=("claim", "the number that decides", *(model or "trained here" for model in models)),
        rows=tuple(cells),
        note=f"{verdicts(one for found in rows.values() for one in found)}.",
    )


def _row(one: ClaimResult, named: bool) -> tuple[Cell, ...]:
    model = (one.model or "trained here",) if named else ()
    return (
        one.claim.says,
        *model,
        _VERDICTS[one.verdict],
        one.number,
        one.effect,
        one.control,
        one.smallest,
        because(one),
    )


def because(one: ClaimResult) -> str:
    """Why a claim is judged as it is, in a sentence or two."""
    parts = []
    claim, found = one.claim, one.number
    if found is None:
        parts.append(one.why or "it was not measured")
    else:
        parts.append(f"{claim.decides}: {text(found)}" + (f" on {one.items}" if one.items else "") + _against(one))
        parts += [one.why] if one.why else []
    if claim.published:
        parts.append(f"The paper: {claim.published}")
    if one.verdict == "not decided" and one.cost:
        parts.append(f"To decide: {one.cost}")
    return " ".join(part.strip().rstrip(".") + "." for part in parts)


def _against(one: ClaimResult) -> str:
    """What the interval holds that the verdict follows from."""
    claim = one.claim
    if one.verdict == "held":
        return ""
    if one.number is not None and one.number.low == one.number.high == claim.none:
        return ": no item changed, so the interval has no width and decides nothing"
    if claim.margin is not None:
        return f", where {number(claim.margin)} is the margin"
    paper = f" the paper's {number(claim.paper_effect)}" if claim.paper_effect is not None else ""
    none = f"{claim.none:g}" + " (no effect)" * (claim.none in (0, 1))
    if one.verdict == "not decided":
        return f", which leaves open {none}" + (f" and{paper}" if paper and _holds(one) else "")
    return f", without{paper}" if one.number and _includes_none(one) else f", on the other side of {none}"


def _holds(one: ClaimResult) -> bool:
    paper = one.claim.paper_effect
    return one.number is not None and paper is not None and one.number.low <= paper <= one.number.high


def _includes_none(one: ClaimResult) -> bool:
    return one.number is not None and one.number.low <= one.claim.none <= one.number.high


def verdicts(claims: Iterable[ClaimResult]) -> str:
    """How many held, did not, and could not be decided."""
    counts = Counter[str](one.verdict for one in claims)
    return ", ".join(f"{counts[name]} {words}" for name, words in _VERDICTS.items())
