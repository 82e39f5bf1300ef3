"""The grid: variants of a model x measures -> scores; contrasts between them; tables and charts of both."""

from studfinder.studies.claims import cost_of, judged
from studfinder.studies.divergence import Divergence, Original
from studfinder.studies.grid import Grid, GridCell, Remembers, Watch, several, with_edits
from studfinder.studies.scored import FEWEST, KL, PAIRED, GridScores, ModelVariant, head, spoken
from studfinder.studies.swept import effects_plot, effects_table, nulled, ratio, swept

__all__ = [
    "FEWEST",
    "KL",
    "PAIRED",
    "Divergence",
    "Grid",
    "GridCell",
    "GridScores",
    "ModelVariant",
    "Original",
    "Remembers",
    "Watch",
    "cost_of",
    "effects_plot",
    "effects_table",
    "head",
    "judged",
    "nulled",
    "ratio",
    "several",
    "spoken",
    "swept",
    "with_edits",
]
