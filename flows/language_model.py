"""The main flow: download → tokenize → vocabulary → corpus → train, evaluate, generate per cell → compare.

Beside the vocabulary, the statistics of the text: nothing waits for them but the record of the run.
"""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import runners
from flows.ledger import CellStages, Ledger
from flows.summary import RunSummary, finish
from flows.text_stages import TextStages
from flows.train_cell import train_on_a_worker
from rnnlm_core.config import NGRAM, RunConfig, flatten
from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.download import Source, resolve, without_password
from rnnlm_core.inspection import inspect
from rnnlm_core.presets import run_config
from tasks import health, progress, tracking
from tasks.caching import VerifiedSerializer
from tasks.compare import compare
from tasks.dynamic_evaluation import dynamic_evaluation
from tasks.evaluate import evaluate
from tasks.generate import generate
from tasks.stopping import stop_requested
from tasks.tracking import FlowRun
from tasks.train import train

# A thread waits for its stage; what trains is a process that has waited for its slot (`tasks.train`).
THREADS = 16
SLOWEST_FIRST = ("gru", "lstm", "rnn", "ngram")
"""Before them those of other packages, which have no kernel."""


@flow(
    name="language-model",
    task_runner=ThreadPoolTaskRunner(max_workers=THREADS),
    persist_result=False,
    result_serializer=VerifiedSerializer(),  # Prefect keeps a flow's failure all the same, by default as a pickle
)
def language_model(
    preset: str = "quickstart",
    corpus: str | None = None,
    cells: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    runner: str = "local",
    on_workers: bool = False,
) -> dict[str, Any]:
    """Train, measure and compare recurrent cells on a text, beside n-grams if wanted.

    Safe to run at any time and as often as you like: a stage whose inputs, settings and code have not changed is
    not done again. What it makes stays under `artifacts/` and in MLflow.

    Args:
        preset: the complete config to start from (`rnnlm presets` lists them).
        corpus: another text: a name (`rnnlm corpora`), a path or an http(s) address.
        cells: which of rnn, gru, lstm, ngram (the baseline without a network) and those of installed packages; each
            takes a training of its own.
        changes: config keys and their values, `{"train.epochs": 3}`; a changed key repeats the stages it reaches.
        runner: who works on the shards of a long text: local, dask or ray, or dask:HOST:PORT, ray:HOST:PORT.
        on_workers: train each cell as a flow run of its own, on any worker of the pool.
    """
    workers = runners.parse(runner)
    runners.check(workers)
    config = run_config(preset, corpus, cells, changes)
    source = resolve(config.corpus.name)
    inspect(source, config)
    stop_requested.clear()
    runners.warn_of(workers)
    for done in health.tidy():
        progress.warn("start", done)
    parameters = flatten(config) | {"corpus.name": without_password(config.corpus.name)}
    with tracking.parent_run(preset, source.name, parameters, str(flow_run.id or "")) as run:
        crashpoint("flow opened")
        try:
            summary = _chain(config, source, run, workers, on_workers).as_json()
            crashpoint("flow finished")
            return summary
        except BaseException as error:
            stop_requested.set()
            if not isinstance(error, Exception):  # Ctrl-C, a cancelled flow
                progress.warn("stop", "ending what is under way, checkpoints are kept …")
            raise
        finally:
            health.clear_checkpoints()


def _how_fast(cell: str) -> int:
    return SLOWEST_FIRST.index(cell) if cell in SLOWEST_FIRST else -1


def _chain(config: RunConfig, source: Source, run: FlowRun, workers: runners.Runner, on_workers: bool) -> RunSummary:
    ledger = Ledger(run, source)
    text = TextStages.begin(config, source, ledger, workers)
    ids, words = text.corpus, text.vocabulary
    # Submitted when they can start, so that they queue for a processor in this order.
    cells = {}
    for cell in sorted(config.cells, key=_how_fast):
        settings = (cell, ids, words, config.model.for_cell(cell), config.train.for_cell(cell), run)
        there = train_on_a_worker.submit(*settings) if on_workers else None
        trained = train.submit(*settings, wait_for=[there] if there else None)
        measured = evaluate.submit(cell, trained, ids, config.evaluate.static)
        learning = None
        if config.evaluate.dynamic_rate and cell != NGRAM:  # which has nothing to learn with
            learning = dynamic_evaluation.submit(cell, trained, ids, config.evaluate, config.train.device)
        samples = generate.submit(cell, trained, ids, config.evaluate.static, config.generate)
        cells[cell] = CellStages(trained, measured, samples, there, learning)
    text.describe(config, ledger)
    ledger.take_cells({cell: cells[cell] for cell in config.cells})
    done = ledger.done()
    compared = compare.submit([cells[cell].train for cell in done], [cells[cell].evaluate for cell in done])
    return finish(ledger, ledger.take("compare", compared))
