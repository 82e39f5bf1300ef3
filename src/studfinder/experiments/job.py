"""An experiment as workers are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from studfinder.errors import NoWorkers
from studfinder.measures import tokens_a_pass
from studfinder.models import LM
from studfinder.runs import Steps, Work
from studfinder.studies.experiment import Bench, StudyConfig


@dataclass
class ExperimentJob:
    """See `studies.worker.Job`.

    Attributes:
        module: that of the experiment.
        models: names by the scope of their steps (see `Bench.model`).
        loader: loads a model by name; can be pickled.
        work: the folder of the run.
        scans: see `Bench`.
    """

    module: str
    config: StudyConfig
    models: Mapping[str, str]
    loader: Callable[[str], LM]
    work: Path
    scans: Path
    folder: Path
    tokens: int | None
    _bench: Bench | None = field(default=None, init=False)

    @classmethod
    def of(cls, module: str, bench: Bench, hashes: Sequence[str]) -> ExperimentJob:
        """That of a run which begins here.

        Args:
            hashes: of the models' weights.
        """
        return cls(
            module=module,
            config=bench.config,
            models={digest[:16]: name for digest, name in zip(hashes, bench.models, strict=True)},
            loader=bench.loader,
            work=bench.folder.absolute(),
            scans=bench.scans.absolute(),
            folder=Path.cwd(),
            tokens=tokens_a_pass(),
        )

    def follow(self, steps: Steps, share: str) -> None:
        """See `Job.follow`."""
        if self._bench is None:
            models = tuple(self.models.values())
            self._bench = Bench(models, self.config, Work(self.work, steps), None, self.loader, scans=self.scans)
        scope = share.partition("/")[0]
        try:
            with self._bench.model(self.models[scope]) as lm:
                if self._bench.scope != scope:
                    raise NoWorkers(
                        f"a worker finds other weights under the name {self.models[scope]}",
                        expected="the same files on all machines",
                    )
                import_module(self.module).run(self._bench, lm)
        finally:
            self._bench.scope = scope  # the share is carried out when all this has been left
