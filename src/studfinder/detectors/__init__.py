"""One phenomenon a file: statistics -> records. A detector reads a running model and never changes it."""

from studfinder.detectors.detector import DETECTORS, Detector, every_detector
from studfinder.detectors.observe import observe

__all__ = ["DETECTORS", "Detector", "every_detector", "observe"]
