# What is public: the verbs, the types and the namespaces. Type checkers read this file, and `__init__.py` makes the
# rest of it. What a namespace shows is its own `__all__`.
from studfinder import attention as attention
from studfinder import edits as edits
from studfinder import measures as measures
from studfinder import quantizers as quantizers
from studfinder import training as training
from studfinder.attention import convert as convert
from studfinder.edits import edited as edited
from studfinder.errors import StudfinderError as StudfinderError
from studfinder.experiments.run import experiment as experiment
from studfinder.measures import Scores as Scores
from studfinder.models import LM as LM
from studfinder.quantizers import keep as keep
from studfinder.quantizers import quantized as quantized
from studfinder.records import Findings as Findings
from studfinder.records import Scorecard as Scorecard
from studfinder.runs import read as read
from studfinder.sites import capture as capture
from studfinder.verbs.diagnose import diagnose as diagnose
from studfinder.verbs.equalize import equalize as equalize
from studfinder.verbs.load import load as load
from studfinder.verbs.measure import measure as measure
from studfinder.verbs.plan import plan as plan
from studfinder.verbs.quantize import quantize as quantize
from studfinder.verbs.scan import scan as scan
from studfinder.verbs.train import train as train

__version__: str
