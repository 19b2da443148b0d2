"""Sweeps as Optuna keeps them: which trials there are, what to try next, and whether a trial is worth going on.

All studies live in one SQLite file. The sampler (TPE) begins anew for each trial, with a seed made of the sweep and
the number of the trial: what it proposes depends on the trials that are done, and not on who was killed in between.
Trials side by side do not wait for each other, so only one after the other do they come out the same each time.
"""

import hashlib
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from rnnlm_core.errors import ConfigError, IntegrityError
from rnnlm_core.outcomes import Epoch
from rnnlm_core.search import Plan, difference
from rnnlm_core.search_space import Dimension, Value
from tasks import patience, workspace
from tasks.database_file import create_whole
from tasks.locking import KernelLocks

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
STARTUP_TRIALS = 10
"""Trials at random before the sampler believes what it sees."""
FULL_TRIALS = 4
"""Complete trials before one is pruned."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `complete`, `pruned` or `failed` (for the `reason`).

    `curve` is the validation perplexity after each epoch.
    """

    state: str
    curve: dict[int, float] = field(default_factory=dict)
    training_run_id: str = ""
    reason: str = ""

    @property
    def best(self) -> tuple[int, float] | None:
        """The best epoch and its validation perplexity."""
        return min(self.curve.items(), key=lambda point: point[1], default=None)


@dataclass(frozen=True)
class Finished:
    """A trial that counts: its number, its values and how it ended."""

    number: int
    values: dict[str, Value]
    outcome: Outcome
    run_id: str


class Trial:
    """A trial under way."""

    def __init__(self, plan: Plan, trial: optuna.trial.Trial, curve: Mapping[int, float] | None = None) -> None:
        self.trial = trial
        self.number = trial.number
        self.curve = dict(curve or {})
        self.values = plan.propose(self._suggest)

    def _suggest(self, dimension: Dimension) -> Value:
        """Return the value that the sampler chooses, or has chosen."""
        key, low, high, log = dimension.key, dimension.low, dimension.high, dimension.log
        if dimension.choices:
            chosen: Value = self.trial.suggest_categorical(key, dimension.choices)
        elif isinstance(low, int) and isinstance(high, int):
            chosen = self.trial.suggest_int(key, low, high, log=log)
        else:
            chosen = self.trial.suggest_float(key, low, high, log=log)
        return dimension.tidy(chosen)

    def enough(self, epoch: Epoch) -> bool:
        """Note the validation perplexity of an epoch; say whether other trials were better after as many.

        A training that resumes goes through the epochs it has had: of these, only the last is asked about again.
        """
        if epoch.valid_perplexity is None or epoch.number < max(self.curve, default=0):
            return False
        if epoch.number not in self.curve:
            self.curve[epoch.number] = epoch.valid_perplexity
            self.trial.report(epoch.valid_perplexity, epoch.number)
        return epoch.number < epoch.epochs and self.trial.should_prune()


class Study:
    """The trials of one sweep."""

    def __init__(self, plan: Plan, study: optuna.Study, storage: RDBStorage) -> None:
        self.plan, self.study, self.storage = plan, study, storage

    @property
    def sweep_id(self) -> str:
        """What the runs of this sweep are found by."""
        return str(self.study.user_attrs["id"])

    def finished(self) -> list[Finished]:
        """Return the trials that count, in their order."""
        return [_finished(self.plan, t) for t in self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))]

    def unfinished(self) -> list[Trial]:
        """Return the trials that somebody left under way: they go on as they are."""
        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trials = []
        for trial in left:
            self._seed(trial.number)
            trials.append(Trial(self.plan, optuna.trial.Trial(self.study, trial._trial_id), trial.intermediate_values))
        return trials

    def ask(self) -> Trial:
        """Return the next trial."""
        known = self.study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in known if trial.state == TrialState.WAITING]
        self._seed(waiting[0] if waiting else len(known))
        return Trial(self.plan, self.study.ask())

    def tell(self, trial: Trial, outcome: Outcome, run_id: str) -> None:
        """Note how a trial ended."""
        for step, value in outcome.curve.items():
            if step not in trial.curve:
                trial.trial.report(value, step)
        facts = {"state": outcome.state, "training_run_id": outcome.training_run_id, "reason": outcome.reason}
        for key, value in (facts | {"run_id": run_id}).items():
            trial.trial.set_user_attr(key, value)
        if outcome.state == COMPLETE:
            assert outcome.best is not None
            self.study.tell(trial.trial, outcome.best[1])
        else:  # a failed one too: the sampler shall keep away from there
            self.study.tell(trial.trial, state=TrialState.PRUNED)

    def check_text(self, corpus: str) -> None:
        """Note the digest of the corpus; raise `ConfigError` when the trials so far had another one."""
        then = self.study.user_attrs.get("corpus")
        if then is None:
            self.study.set_user_attr("corpus", corpus)
        elif then != corpus:
            raise ConfigError(
                f"sweep {self.plan.name} was begun on another text: its corpus was {then[:12]}, is {corpus[:12]}: "
                "give another --name to begin anew"
            )

    def close(self) -> None:
        """Close the connections to the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def end(self, run_id: str, trials: int) -> None:
        """Note that the run of the sweep says all there is to say of so many trials."""
        self.study.set_user_attr("closed", {"run_id": run_id, "trials": trials})

    def closed_run(self, trials: int) -> str:
        """Return the run of a sweep that has so many trials and left nothing to do, else ""."""
        closed = self.study.user_attrs.get("closed", {"trials": -1})
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        done = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)
        return str(closed["run_id"]) if closed["trials"] == done >= trials else ""

    def _seed(self, number: int) -> None:
        digest = hashlib.sha256(f"{self.plan.digest}:{number}".encode()).digest()
        self.study.sampler = TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=STARTUP_TRIALS)


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until no other process works at this sweep, and keep others waiting: what it left is nobody's."""
    locks, key, holder = KernelLocks(), f"sweep-{name}", uuid.uuid4().hex
    locks.acquire_lock(key, holder)
    try:
        yield
    finally:
        locks.release_lock(key, holder)


def open_study(plan: Plan) -> Study:
    """Open the study of a plan, or begin it; raises `ConfigError` if one of this name is another."""
    path = workspace.sweeps_database()
    if not path.exists():
        create_whole(path, _fill)
    storage = _storage(path)
    study = optuna.create_study(study_name=plan.name, storage=storage, load_if_exists=True, pruner=_pruner(plan))
    if "id" not in study.user_attrs:
        for values in plan.starts():
            study.enqueue_trial(values, skip_if_exists=True)
        study.set_user_attr("definition", plan.definition)
        study.set_user_attr("id", uuid.uuid4().hex)  # last: what is half begun is begun again
    return _checked(plan, study, storage)


def find_study(plan: Plan) -> Study | None:
    """Return the study of a plan if it has been begun; nothing is made by the question."""
    path = workspace.sweeps_database()
    if not path.exists():
        return None
    storage = _storage(path)
    try:
        study = optuna.load_study(study_name=plan.name, storage=storage, pruner=_pruner(plan))
    except KeyError:
        return None
    return _checked(plan, study, storage) if "id" in study.user_attrs else None


def _checked(plan: Plan, study: optuna.Study, storage: RDBStorage) -> Study:
    other = difference(study.user_attrs["definition"], plan.definition)
    if other:
        raise ConfigError(
            f"sweep {plan.name} was begun otherwise: {'; '.join(other)}: give another --name, or leave it out"
        )
    return Study(plan, study, storage)


def _pruner(plan: Plan) -> MedianPruner:
    """Return what ends a trial that is worse, after an epoch, than half of the complete ones were."""
    return MedianPruner(n_startup_trials=FULL_TRIALS, n_warmup_steps=max(2, plan.config.train.epochs // 4))


def _fill(draft: Path) -> None:
    storage = RDBStorage(f"sqlite:///{draft}")
    storage.engine.dispose()


def _storage(path: Path) -> RDBStorage:
    """Return the storage in a database that is there; raises `IntegrityError` if it is none of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    patience.be_patient()
    address = f"{path.absolute().as_uri()}?mode=rw"
    with path.open("rb") as file:
        fault = "" if file.read(16) == b"SQLite format 3\0" else "this is no SQLite file"
    if not fault:
        with closing(sqlite3.connect(address, uri=True, factory=patience.PatientConnection)) as database:
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        fault = (
            said if said != "ok" else "" if {"studies", "trials", "version_info"} <= tables else "tables are missing"
        )
    if not fault:
        try:
            return RDBStorage(f"sqlite:///{path}")
        except RuntimeError as error:
            fault = str(error)
    raise IntegrityError("not a database of sweeps", f"{path} ({fault})", "restore it, or move it away to start anew")


def _finished(plan: Plan, trial: FrozenTrial) -> Finished:
    ways: Mapping[str, Any] = trial.user_attrs
    by_key = {dimension.key: dimension for dimension in plan.dimensions}
    values = {key: by_key[key].tidy(trial.params[key]) for key in by_key if key in trial.params}
    outcome = Outcome(ways["state"], dict(trial.intermediate_values), ways["training_run_id"], ways["reason"])
    return Finished(trial.number, values, outcome, ways["run_id"])
