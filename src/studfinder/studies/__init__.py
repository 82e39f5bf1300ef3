"""The grid: variants of a model x measures -> scores; contrasts between them; tables and charts of both."""

from studfinder.studies.divergence import Divergence, Original
from studfinder.studies.grid import Executor, Grid, GridCell, Put, Remembers, Watch, serial, silent, with_edits
from studfinder.studies.scored import FEWEST, KL, PAIRED, Scored, Variant, head, spoken
from studfinder.studies.swept import effects_plot, effects_table, ratio, swept

__all__ = [
    "FEWEST",
    "KL",
    "PAIRED",
    "Divergence",
    "Executor",
    "Grid",
    "GridCell",
    "Original",
    "Put",
    "Remembers",
    "Scored",
    "Variant",
    "Watch",
    "effects_plot",
    "effects_table",
    "head",
    "ratio",
    "serial",
    "silent",
    "spoken",
    "swept",
    "with_edits",
]
