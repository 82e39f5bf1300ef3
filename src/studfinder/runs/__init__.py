"""Run folder, provenance, atomic writes."""

from studfinder.runs.atomic import write_bytes, write_text
from studfinder.runs.folder import RunFolder, find_findings, open_run
from studfinder.runs.ledger import Ledger
from studfinder.runs.processes import first_process
from studfinder.runs.provenance import key_of, now, versions

__all__ = [
    "Ledger",
    "RunFolder",
    "find_findings",
    "first_process",
    "key_of",
    "now",
    "open_run",
    "versions",
    "write_bytes",
    "write_text",
]
