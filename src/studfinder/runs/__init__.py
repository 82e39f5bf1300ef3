"""One run: identity, folder, steps done, provenance, result last; atomic writes."""

from studfinder.runs.atomic import TEMPORARY, write_bytes, write_text, writes_to
from studfinder.runs.found import RECORDS, kind_of, read, record_file
from studfinder.runs.manifest import drawn
from studfinder.runs.processes import first_process, process_count
from studfinder.runs.provenance import SCORING, key_of, made_on, now, scored_with, versions
from studfinder.runs.run import Run, Work, check_place, run_of
from studfinder.runs.steps import Executor, Progress, Put, Share, Steps, here, silent

__all__ = [
    "RECORDS",
    "SCORING",
    "TEMPORARY",
    "Executor",
    "Progress",
    "Put",
    "Run",
    "Share",
    "Steps",
    "Work",
    "check_place",
    "drawn",
    "first_process",
    "here",
    "key_of",
    "kind_of",
    "made_on",
    "now",
    "process_count",
    "read",
    "record_file",
    "run_of",
    "scored_with",
    "silent",
    "versions",
    "write_bytes",
    "write_text",
    "writes_to",
]
