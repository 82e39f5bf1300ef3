"""One table or figure of a paper a file; a paper's own quirks live here, not below."""

from studfinder.experiments.registry import EXPERIMENTS, experiment_named
from studfinder.experiments.run import ExperimentPlan, experiment, plan_experiment, redraw, run_experiment
from studfinder.studies.experiment import Bench, Experiment, Outcome

__all__ = [
    "EXPERIMENTS",
    "Bench",
    "Experiment",
    "ExperimentPlan",
    "Outcome",
    "experiment",
    "experiment_named",
    "plan_experiment",
    "redraw",
    "run_experiment",
]
