"""One phenomenon a file: statistics -> candidates. A detector reads a running model and never changes it."""

from studfinder.detectors.detector import DETECTORS, Detector
from studfinder.detectors.observe import observe

__all__ = ["DETECTORS", "Detector", "observe"]
