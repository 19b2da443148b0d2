"""What a run's page says at its top, and what the run is called in the list once its figures are known.

Somebody's own words are theirs to keep: a description that was edited, or a run that was renamed, stays.
"""

import hashlib
from collections.abc import Mapping, Sequence

from mlflow.entities import RunTag

from rnnlm_core.config import NGRAM
from rnnlm_core.outcomes import Evaluated, Trained
from tasks.tracked_runs import TrackedRun, tracked
from tasks.tracking import FlowRun
from tasks.tracking_database import client, experiment_id
from tasks.wording import command, duration, figure

NOTE = "mlflow.note.content"
WRITTEN = "rnnlm.note_sha256"
UNITS = {"char": "characters", "word": "words", "byte": "bytes", "bpe": "byte pairs"}


def note_cell(run_id: str, trained: Trained, evaluated: Evaluated) -> None:
    """Give the run of a cell its description and its name, from its figures."""
    run = tracked(client().get_run(run_id))
    which = "" if evaluated.split == "test" else f"{evaluated.split} "
    name = (trained.cell, f" {which}ppl {figure(evaluated.perplexity)}", f" · {run.tags.get('rnnlm.corpus', '?')}")
    _write(run, name, "\n\n".join(filter(None, _cell_words(run, trained, evaluated))))


def _cell_words(run: TrackedRun, trained: Trained, evaluated: Evaluated) -> list[str]:
    p = run.parameters
    layers = p.get("model.num_layers", "1")
    shape = [f"{p['model.hidden_size']} hidden"] if "model.hidden_size" in p else []
    shape += [f"{layers} layer{'s' * (layers != '1')}"] if shape else []
    shape += [f"order {p['model.order']}"] if "model.order" in p else []
    unit = UNITS.get(level := p.get("tokenizer.level", ""), level)
    what = ", ".join([f"**{trained.cell.upper()}**", *shape])
    where = f"on {run.tags.get('rnnlm.corpus', '?')}" + (f" ({unit})" if unit else "")
    unknown = f", {evaluated.oov_rate:.2%} of the tokens unknown" if evaluated.oov_rate else ""
    result = (
        f"{evaluated.split} perplexity **{figure(evaluated.perplexity)}** "
        f"({evaluated.bits_per_char:.3f} bits per character{unknown})"
    )
    if trained.cell == NGRAM:
        seconds = duration(trained.best.seconds)
        effort = f"{trained.num_parameters:,} n-grams, counted, smoothed and measured in {seconds}."
        return [f"{what}, {where}: {result}.", effort, _again(run.tags, p, trained.cell)]
    done, wanted = len(trained.history), trained.history[-1].epochs
    best = f"The weights are those of epoch {trained.best_epoch} of {done}"
    if done < wanted:
        best += f" (stopped early, {wanted} allowed)"
    if trained.best.valid_perplexity is not None:
        best += f", the best by validation perplexity ({figure(trained.best.valid_perplexity)})"
    effort = (
        f"Trained in {duration(sum(epoch.seconds for epoch in trained.history))} on {trained.device} at "
        f"{trained.tokens_per_second:,.0f} tokens/s; {trained.num_parameters:,} parameters."
    )
    return [f"{what}, {where}: {result}.", f"{best}. {effort}", _again(run.tags, p, trained.cell)]


def note_pipeline(flow: FlowRun, best: str, result: str, table: str, found: Sequence[str], failed: str = "") -> None:
    """Give the run of a flow its description: the comparison, and links to the runs of cells `found` trained.

    `result` is the perplexity of the best cell, in words; `failed` says which cells failed and why.
    """
    run = tracked(client().get_run(flow.parent_run_id))
    words = [f"{flow.preset} on {flow.corpus}: **{best}** is best, {result}.", table.strip()]
    if found:
        words.append(f"Already trained, nothing repeated: {', '.join(found)}.")
    if failed:
        words.append(f"Failed: {failed}")
    words.append(_again(run.tags, run.parameters))
    name = (flow.preset, f" · {best} {result.partition(',')[0]}", f" · {flow.corpus}")
    _write(run, name, "\n\n".join(filter(None, words)))


def links(runs: Mapping[str, str]) -> dict[str, str]:
    """Return, for each run by the text that shall lead to it, a link within MLflow's own pages, in Markdown."""
    place = f"#/experiments/{experiment_id()}/runs"
    return {text: f"[{text}]({place}/{run_id})" for text, run_id in runs.items()}


def _again(tags: Mapping[str, str], parameters: Mapping[str, str], cell: str = "") -> str:
    again = command(tags.get("rnnlm.preset", ""), parameters, cell)
    return f"Run again with `{again}`" if again else ""


def _write(run: TrackedRun, name: tuple[str, str, str], note: str) -> None:
    """Write description and name, unless somebody has written there since we did.

    The name has the figures in its middle: MLflow's list shows some twenty characters of it.
    """
    write_note(run, note)
    called, (first, _, last) = run.tags.get("mlflow.runName", ""), name
    if called != "".join(name) and called.startswith(f"{first} ") and called.endswith(last):
        client().update_run(run.run_id, name="".join(name))


def write_note(run: TrackedRun, note: str) -> None:
    """Write the description of a run, unless somebody has written there since we did."""
    present = run.tags.get(NOTE, "")
    if not present or run.tags.get(WRITTEN) == _digest(present):
        client().log_batch(run.run_id, tags=[RunTag(NOTE, note), RunTag(WRITTEN, _digest(note))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
