"""Stage `compare`: the cells side by side."""

from rnnlm_core import compare as core
from rnnlm_core.compare import Compared
from tasks import workspace
from tasks.caching import stage
from tasks.evaluate import TrackedEvaluation
from tasks.train import TrackedTraining


@stage("rnnlm_core.compare", Compared)
def compare(trainings: list[TrackedTraining], evaluations: list[TrackedEvaluation]) -> Compared:
    """Return the table and the picture of all cells."""
    return core.compare([t.trained for t in trainings], [e.evaluated for e in evaluations], workspace.store())
