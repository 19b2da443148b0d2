"""The watching flow: look at a text, and retrain only if it is another one than last time."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from flows.parameters import Cells, Changes, Preset, Tolerance
from flows.retrain import DEFAULT_TOLERANCE, UNCHANGED, artifact_key, failure_told, retrained
from rnnlm_core.config import flatten
from rnnlm_core.download import resolve, without_password
from rnnlm_core.presets import run_config
from tasks import scheduled_runs, tracked_runs, tracking
from tasks.caching import VerifiedSerializer
from tasks.download import download
from tasks.wording import markdown_text


@flow(name="watch-corpus", persist_result=False, result_serializer=VerifiedSerializer())
def watch_corpus(
    corpus: str,
    preset: Preset = "quickstart",
    cells: Cells = None,
    changes: Changes | None = None,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
) -> Any:
    """Retrain when a file, a folder or an address holds another text than the last finished run with these settings.

    An unchanged text starts no training and no MLflow run; the state of the flow run says so.

    Args:
        corpus: the text to watch: the path of a file or folder, or an http(s) address.
        preset: the complete config to start from (`rnnlm presets` lists them).
        cells: which of rnn, gru, lstm and ngram; none means those of the preset.
        changes: config keys and their values; what is left out is as in the preset.
        tolerance: how much worse than the champion, as a share of its perplexity, is a regression.
    """
    with scheduled_runs.claimed(), failure_told(preset, corpus, changes):
        config = run_config(preset, corpus, cells, changes)
        text = download(resolve(config.corpus.name)).handle
        shown = without_password(config.corpus.name)
        known = tracked_runs.last_text(tracking.config_sha256(flatten(config) | {"corpus.name": shown}))
        if known != text.sha256:
            return retrained(preset, corpus, cells, changes, tolerance)
        message = f"{UNCHANGED}: {shown} holds the text of the last run ({text.sha256[:12]}), nothing is trained"
        create_markdown_artifact(key=artifact_key("watch", shown), markdown=markdown_text(message), description=message)
        return Completed(
            name="Unchanged", message=message, data={"verdict": UNCHANGED, "reason": message, "text": text.sha256}
        )
