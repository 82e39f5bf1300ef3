"""Findings in a notebook cell."""

from __future__ import annotations

from html import escape

from studfinder.records.findings import Findings, SuperWeight

_ROWS = 5


def html_of(findings: Findings) -> str:
    """The model, what was found, and the first super weights. Everything from outside is escaped: a token is text that
    somebody else wrote."""
    f = findings
    counts = (
        f"{len(f.super_weights)} super-weight candidates ({len(f.proven)} proven), "
        f"{len(f.massive_activations)} massive activations, {len(f.massive_values)} massive values, "
        f"{len(f.attention_sinks)} sinks" + "".join(f", {len(of)} {escape(name)}" for name, of in f.others.items())
    )
    shown = (f.proven or f.super_weights)[:_ROWS]
    head = "<tr><th>super weight</th><th>value</th><th>token</th><th>KL, nats</th><th>verdict</th></tr>"
    table = f"<table>{head}{''.join(map(_row, shown))}</table>" if shown else ""
    return f"<div><b>{escape(f.model.id)}</b>: {counts}{table}</div>"


def _row(weight: SuperWeight) -> str:
    kl = "" if weight.effect is None else str(weight.effect.kl)
    cells = (str(weight), f"{weight.value:+.4g}", repr(weight.token), kl, weight.verdict)
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
