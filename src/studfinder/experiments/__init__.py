"""One table or figure of a paper a file; a paper's own quirks live here, not below."""

from studfinder.experiments.listed import EndedRun, ListedRun, listed_runs, run_listed
from studfinder.experiments.registry import EXPERIMENTS, experiment_named
from studfinder.experiments.run import ExperimentPlan, experiment, plan_experiment, run_experiment
from studfinder.experiments.sheets import redraw, redraw_together
from studfinder.studies.experiment import Bench, Experiment, Outcome

__all__ = [
    "EXPERIMENTS",
    "Bench",
    "EndedRun",
    "Experiment",
    "ExperimentPlan",
    "ListedRun",
    "Outcome",
    "experiment",
    "experiment_named",
    "listed_runs",
    "plan_experiment",
    "redraw",
    "redraw_together",
    "run_experiment",
    "run_listed",
]
