"""The sweep: one text, many trainings side by side, each with other settings, chosen by validation perplexity.

Whatever is killed or stopped goes on with the same command: trials under way are taken up where they were.
"""

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.language_model import THREADS
from flows.ledger import Ledger
from flows.sweep_summary import publish, summarize
from flows.text_stages import TextStages
from rnnlm_core.config import ModelConfig, RunConfig, TrainConfig, flatten
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import without_password
from rnnlm_core.errors import DataError, Diverged, Pruned, TooLarge
from rnnlm_core.inspection import inspect
from rnnlm_core.search import Plan, make_plan
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import health, progress, studies, tracked_trials, tracking, workspace
from tasks.caching import VerifiedSerializer
from tasks.places import number_of_places
from tasks.progress import News
from tasks.stopping import stop_requested
from tasks.studies import COMPLETE, FAILED, PRUNED, Outcome, Study, Trial
from tasks.tracked_trials import TrialRun
from tasks.tracking import FlowRun
from tasks.train import TrackedTraining, forget_training, train
from tasks.wording import parameter_text

# What the settings of a trial can be to blame for; everything else ends the sweep, which then goes on from there.
OF_A_TRIAL = (Diverged, TooLarge, DataError)
Setting = tuple[str, ModelConfig, TrainConfig]


@flow(
    name="sweep",
    task_runner=ThreadPoolTaskRunner(max_workers=max(THREADS, 2 * workspace.cpu_slots())),
    persist_result=False,
    result_serializer=VerifiedSerializer(),
)
def sweep(
    preset: str = "quickstart",
    corpus: str | None = None,
    cells: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    search: list[str] | None = None,
    trials: int = 20,
    name: str | None = None,
) -> dict[str, Any]:
    """Search the settings with the lowest validation perplexity.

    The same parameters go on with the same sweep, until it has as many trials as asked for. The test split stays
    out of it.

    Args:
        preset: the config to start from (`rnnlm presets` lists them).
        corpus: another text: a name (`rnnlm corpora`), a path or an http(s) address.
        cells: which of rnn, gru, lstm and ngram; of several, each trial has one.
        changes: config keys and their values, which stay as they are.
        search: what varies, `train.learning_rate=log:0.1..4`; by default six keys around the values of the preset.
        trials: how many trials the sweep shall have in the end.
        name: what the sweep is called; by default after its parameters.
    """
    plan = make_plan(preset, corpus, cells, changes, search, name)
    inspect(plan.source, plan.hungriest)
    stop_requested.clear()
    with studies.turn(plan.name):
        for done in health.tidy():
            progress.warn("start", done)
        with closing(studies.open_study(plan)) as study:
            return _go_on(plan, study, trials)


def _go_on(plan: Plan, study: Study, trials: int) -> dict[str, Any]:
    """Bring a sweep to so many trials, and return what it comes to."""
    about = (plan.preset, plan.source.name, _parameters(plan), str(flow_run.id or ""))
    with tracking.sweep_run(plan.name, study.sweep_id, *about) as run:
        try:
            Trials(plan, study, run, *_text(plan, study, run)).go_on(trials)
            summary = summarize(plan, study.finished(), run.parent_run_id)
            publish(summary, run)
        except BaseException as error:
            stop_requested.set()
            if not isinstance(error, Exception):  # Ctrl-C, a cancelled flow
                progress.warn("stop", "ending what is under way, checkpoints are kept …")
            raise
        finally:
            health.clear_checkpoints()
    study.end(run.parent_run_id, len(summary["trials"]))
    return summary


def _parameters(plan: Plan) -> dict[str, str]:
    """Return what the run of a sweep says: what stays as it is, and what varies how."""
    return {key.replace(" ", "."): parameter_text(value) for key, value in plan.definition.items()}


def _text(plan: Plan, study: Study, run: FlowRun) -> tuple[Corpus, BuiltVocabulary]:
    ledger = Ledger(run, plan.source)
    text = TextStages.begin(plan.config, plan.source, ledger)
    text.describe(plan.config, ledger)
    study.check_text(text.corpus.handle.sha256)
    return text.corpus, text.vocabulary


@dataclass
class UnderWay:
    """A trial whose training has been submitted, and those that ask for the same training."""

    trial: Trial
    run: TrialRun
    setting: Setting
    same: list[tuple[Trial, TrialRun]] = field(default_factory=list)


class Trials:
    """Begins trials as places get free, and settles them as they end."""

    def __init__(self, plan: Plan, study: Study, run: FlowRun, corpus: Corpus, vocabulary: BuiltVocabulary) -> None:
        self.plan, self.study, self.run = plan, study, run
        self.corpus, self.vocabulary = corpus, vocabulary
        self.under_way: dict[PrefectFuture[TrackedTraining], UnderWay] = {}
        self.open: dict[int, TrialRun] = {}
        finished = study.finished()
        self.settled = len(finished)
        # What a training came to is known for good: the same settings are not trained again.
        self.known = {_setting(plan.configured(trial.values)): trial.outcome for trial in finished}

    def go_on(self, number: int) -> None:
        """Bring the sweep to so many trials."""
        left, train = self.study.unfinished(), self.plan.config.train
        try:
            while True:
                while self._begun() < number and len(self.under_way) < number_of_places(train.device, train.processes):
                    self._begin(left.pop(0) if left else self.study.ask())
                if not self.under_way:
                    return
                future = next(as_completed(list(self.under_way)))
                self._settle_training(future)
        except BaseException:
            stop_requested.set()
            wait(list(self.under_way))  # a training ends at its next minibatch, and closes its run
            told = {trial.number for trial in self.study.finished()}  # asked to end just after a trial was told
            for one, run in self.open.items():
                if one not in told:
                    tracked_trials.abandon_trial(run)
            raise

    def _begun(self) -> int:
        return self.settled + len(self.open)

    def _begin(self, trial: Trial) -> None:
        config = self.plan.configured(trial.values)
        setting = _setting(config)
        cell, model, how = setting
        parameters = flatten(config) | {"corpus.name": without_password(config.corpus.name)}
        run = tracked_trials.open_trial(self.run, self.study.sweep_id, trial, cell, parameters)
        self.open[trial.number] = run
        if setting in self.known:
            self._settle(trial, run, self.known[setting])
            return
        for one in self.under_way.values():
            if one.setting == setting:
                one.same.append((trial, run))
                return
        named = train.with_options(task_run_name=f"train {run.label(cell)}")
        future = named.submit(cell, self.corpus, self.vocabulary, model, how, run)
        self.under_way[future] = UnderWay(trial, run, setting)

    def _settle_training(self, future: PrefectFuture[TrackedTraining]) -> None:
        outcome = self._outcome(future, self.under_way[future])
        one = self.under_way.pop(future)
        self.known[one.setting] = outcome
        for trial, run in ((one.trial, one.run), *one.same):
            self._settle(trial, run, outcome)

    def _outcome(self, future: PrefectFuture[TrackedTraining], one: UnderWay) -> Outcome:
        """Return what a training came to; raises what no setting is to blame for."""
        try:
            done = future.result()
        except Pruned:
            return Outcome(PRUNED, dict(one.trial.curve), tracked_trials.training_run(one.run))
        except OF_A_TRIAL as error:
            forget_training(*self._arguments(one))
            return Outcome(FAILED, dict(one.trial.curve), tracked_trials.training_run(one.run), str(error))
        history = {e.number: e.valid_perplexity for e in done.trained.history if e.valid_perplexity is not None}
        return Outcome(COMPLETE, history, done.run_id)

    def _arguments(self, one: UnderWay) -> tuple[Any, ...]:
        cell, model, how = one.setting
        return cell, self.corpus, self.vocabulary, model, how, one.run

    def _settle(self, trial: Trial, run: TrialRun, outcome: Outcome) -> None:
        # MLflow first: what Optuna calls done is not looked at again.
        tracked_trials.close_trial(run, outcome)
        self.study.tell(trial, outcome, run.parent_run_id)
        del self.open[trial.number]
        self.settled += 1
        progress.publish(News("trial", run.label(self.plan.cell(trial.values)), done=_told(outcome)))


def _setting(config: RunConfig) -> Setting:
    """Return all that a training depends on beside the text."""
    (cell,) = config.cells
    return cell, config.model.for_cell(cell), config.train.for_cell(cell)


def _told(outcome: Outcome) -> str:
    best = "" if outcome.best is None else f", valid perplexity {outcome.best[1]:.4g} in epoch {outcome.best[0]}"
    if outcome.state == PRUNED:
        return f"pruned after epoch {max(outcome.curve)}{best}"
    return f"failed: {outcome.reason}" if outcome.state == FAILED else f"complete{best}"
