"""The patch journal: the one place that changes a live model, and takes it back."""

from studfinder.patches.interrupts import held
from studfinder.patches.journal import Journal, any_open

__all__ = ["Journal", "any_open", "held"]
