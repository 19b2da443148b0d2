"""The retraining flow: train → compare with the champion on the same validation text → promote or keep → say so.

What it comes to is a Prefect artifact (`verdict-<model>`), a tag of the MLflow run (`rnnlm.verdict`) and an event that
an automation can act on: `rnnlm.retraining.` followed by the outcome, on the resource `rnnlm.model.<model>`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.states import Completed, State

from flows.language_model import language_model
from flows.parameters import Cells, Changes, Preset, Text, Tolerance
from flows.summary import PartlyDoneError
from flows.text_stages import bring_tokens
from rnnlm_core.champion import decide, knows_fewer
from rnnlm_core.config import RunConfig
from rnnlm_core.download import resolve
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.presets import PRESETS, run_config
from rnnlm_core.store import Handle
from tasks import scheduled_runs, tracked_champion, tracked_registry, tracked_runs, tracking, workspace
from tasks.caching import VerifiedSerializer
from tasks.measure_champion import measure_champion
from tasks.tracked_registry import Version
from tasks.tracked_runs import VERDICT
from tasks.wording import figure, markdown_text

EVENT = "rnnlm.retraining."
PROMOTED, KEPT, REGRESSION, UNCHANGED, FAILED = "promoted", "kept", "regression", "unchanged", "failed"
DEFAULT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Outcome:
    """What a retraining comes to: `promoted`, `kept`, `regression` or `unchanged`, and why.

    `perplexity` and `champion_perplexity` are those of the validation text of this run, the second None where it
    cannot be measured there.
    """

    verdict: str
    reason: str
    model: str
    version: int
    perplexity: float | None
    champion: int | None
    champion_perplexity: float | None


@flow(name="retrain", persist_result=False, result_serializer=VerifiedSerializer())
def retrain(
    preset: Preset = "quickstart",
    corpus: Text = None,
    cells: Cells = None,
    changes: Changes | None = None,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
) -> Any:
    """Train the cells on a text and let the best one take the champion's place if it is better.

    Better is a lower perplexity on the same validation text: a champion that was trained on an earlier state of the
    text is measured again on the present one. What is cached is not done again, so a night without changes takes
    seconds. Each outcome raises the event `rnnlm.retraining.<outcome>`: promoted, kept, regression (worse than the
    champion by more than the tolerance), unchanged, failed.

    Args:
        preset: the complete config to start from (`rnnlm presets` lists them).
        corpus: another text: a name (`rnnlm corpora`), a path or an http(s) address.
        cells: which of rnn, gru, lstm and ngram; none means those of the preset.
        changes: config keys and their values; what is left out is as in the preset.
        tolerance: how much worse than the champion, as a share of its perplexity, is a regression.
    """
    with scheduled_runs.claimed(), failure_told(preset, corpus, changes):
        return retrained(preset, corpus, cells, changes, tolerance)


@contextmanager
def failure_told(preset: str, corpus: str | None, changes: dict[str, Any] | None) -> Iterator[None]:
    """Raise the event of a failure for whatever goes wrong within."""
    text = (changes or {}).get("corpus.name") or corpus or PRESETS[preset]().corpus.name
    try:
        yield
    except Exception as error:
        _raise_event(FAILED, tracked_registry.name_for(preset, text), {"reason": str(error)})
        raise


def retrained(
    preset: str,
    corpus: str | None,
    cells: list[str] | None,
    changes: dict[str, Any] | None,
    tolerance: float,
) -> State[dict[str, Any]]:
    """Do the work of the flow within one that is under way; return its final state, which says what came of it.

    Raises `UsageError` for a config without a validation split: nothing could be compared.
    """
    config = run_config(preset, corpus, cells, changes)
    if not config.corpus.has_split("valid"):
        raise UsageError(
            "a retraining is judged on validation text: `corpus.split` must hold some",
            config.corpus.split,
            "give a share, such as 90/5/5",
        )
    before = tracked_registry.champions().get(tracked_registry.name_for(preset, resolve(config.corpus.name).name))
    try:
        summary, failure = language_model(preset, corpus, cells, changes), None
    except PartlyDoneError as error:
        summary, failure = error.summary.as_json(), error
    outcome = _outcome(summary, before, config, tolerance)
    # The best of the cells that are left may be worse than the champion only because its own kind is missing.
    if len(summary["cells"]) == len(config.cells) or outcome.verdict == PROMOTED:
        _tell(outcome, summary)
    if failure is not None:
        raise failure
    return Completed(
        message=f"{outcome.verdict}: {outcome.reason}", data={**asdict(outcome), "run": summary["parent_run_id"]}
    )


def _outcome(summary: dict[str, Any], before: Version | None, config: RunConfig, tolerance: float) -> Outcome:
    name, number = summary["model"]["name"], summary["model"]["version"]
    rival = holder = tracked_registry.champions().get(name)
    version = tracked_registry.version(name, number, holder.number if holder else None)
    # What a flow has trained and had no time to tell is news for the next one, which finds it cached.
    told = VERDICT in version.tags
    measured = None
    if holder is not None and not version.champion and not _same_corpus(holder, version):
        version, measured = _judged_on_its_text(version, holder, summary, config)
    moved = version.champion and (before is None or before.number != number)
    if moved or (version.champion and not told):
        verdict, rival = PROMOTED, before if moved else None
    elif told and all(cell["cached"] for cell in summary["cells"].values()):
        verdict = UNCHANGED
    else:
        verdict = KEPT
    theirs = rival.valid_perplexity if rival is not None and _same_corpus(rival, version) else measured
    ours = version.valid_perplexity
    if verdict == KEPT and theirs is not None and ours is not None and not ours <= theirs * (1 + tolerance):
        verdict = REGRESSION
    reason = version.reason
    if verdict in (KEPT, REGRESSION) and rival is not None and _same_corpus(rival, version):
        reason = decide(version.candidate, rival.candidate).reason  # what it says may be of its own time as champion
    return Outcome(
        verdict=verdict,
        reason=reason,
        model=name,
        version=number,
        perplexity=ours,
        champion=rival.number if rival is not None else None,
        champion_perplexity=theirs,
    )


def _same_corpus(holder: Version, version: Version) -> bool:
    return holder.candidate.corpus_sha256 == version.candidate.corpus_sha256


def _judged_on_its_text(
    version: Version, holder: Version, summary: dict[str, Any], config: RunConfig
) -> tuple[Version, float | None]:
    """Measure the champion on the validation text of a version and judge that; return it and the figure."""
    ours = version.candidate
    # Byte pairs are learnt from the text: another text is cut into other tokens.
    if ours.valid_perplexity is None or ours.tokenizer != holder.candidate.tokenizer or config.tokenizer.level == "bpe":
        return version, None
    cannot = f"champion (version {holder.number}) cannot be measured on this corpus"
    if not tracked_runs.run_exists(holder.run_id):
        return _keep(version, f"{cannot}: its run is not in MLflow"), None
    run = tracked_runs.find_model_run(holder.run_id)
    normalizer = run.parameters.get("corpus.normalizer", "")
    if normalizer != config.corpus.normalizer:
        return _keep(version, f"{cannot}: it reads texts that are normalised otherwise ({normalizer})"), None
    model, words = (
        Handle(kind, run.tags.get(f"rnnlm.{kind}_sha256", "")) for kind in ("model", "vocabulary")
    )  # fmt: skip
    store = workspace.store()
    if lost := next((handle for handle in (model, words) if store.bring(handle)), None):
        return _keep(version, f"{cannot}: its {lost.kind} is not here"), None
    text, tokens = bring_tokens(config, resolve(config.corpus.name))
    parent = tracked_runs.find_model_run(summary["parent_run_id"])
    if parent.tags[tracked_runs.TEXT] != text.handle.sha256:
        raise DataError("the text changed while it was compared", config.corpus.name, "run the same again")
    measured = measure_champion(model, words, tokens, config.corpus.shares)
    if reason := knows_fewer(parent.metrics["corpus/valid_oov_rate"], measured.oov_rate, holder.number):
        return _keep(version, reason), None
    judged = tracked_champion.judge_measured(version.name, version.number, holder.number, measured.perplexity)
    return judged, measured.perplexity


def _keep(version: Version, reason: str) -> Version:
    return tracked_champion.keep_champion(version.name, version.number, reason)


def _tell(outcome: Outcome, summary: dict[str, Any]) -> None:
    """Leave the verdict where people and automations look for it."""
    rows = [
        (f"version {outcome.version} ({summary['best_cell']}, this run)", outcome.perplexity),
        (f"champion until now, version {outcome.champion}" if outcome.champion else "", outcome.champion_perplexity),
    ]
    table = "\n".join(
        f"| {name} | {'not measured' if value is None else figure(value)} |" for name, value in rows if name
    )
    create_markdown_artifact(
        key=artifact_key("verdict", outcome.model),
        markdown=(
            f"# {outcome.model}: {outcome.verdict}\n\n{markdown_text(outcome.reason)}\n\n"
            f"| | validation perplexity |\n|---|---|\n{table}\n\nMLflow run {summary['parent_run_id']}\n"
        ),
        description=f"{outcome.verdict}: {outcome.reason}",
    )
    _raise_event(outcome.verdict, outcome.model, asdict(outcome))
    tracked_registry.tag_version(outcome.model, outcome.version, VERDICT, outcome.verdict)
    # Last: a text counts as seen once all of this is told.
    tracking.set_tags(summary["parent_run_id"], {VERDICT: outcome.verdict, "rnnlm.verdict_reason": outcome.reason})


def artifact_key(kind: str, name: str) -> str:
    """Return the key of an artifact, which may hold small letters, digits and dashes alone."""
    return "-".join([kind, *re.findall("[a-z0-9]+", name.lower())])


def _raise_event(verdict: str, model: str, payload: dict[str, Any]) -> None:
    resource = {"prefect.resource.id": f"rnnlm.model.{model}", "prefect.resource.name": model}
    emit_event(EVENT + verdict, resource=resource, payload=payload)
