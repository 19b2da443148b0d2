"""The report of a flow run: one HTML file that needs nothing else, to keep, to print or to send.

`render` makes a page of what is known; `publish` gathers that from a run's books, writes the file and gives MLflow
a copy. Every text that comes from outside (samples, names, errors, settings) is escaped by the template engine.
"""

import base64
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from flows.ledger import Ledger
from rnnlm_core.catalogue import CatalogueEntry, find_corpus
from rnnlm_core.compare import PICTURE, Compared, Row
from rnnlm_core.config import known_names
from rnnlm_core.corpus import Corpus
from rnnlm_core.download import Source, Text, without_password
from rnnlm_core.errors import ResourceError
from rnnlm_core.outcomes import Epoch, Sample
from rnnlm_core.pictures import vector
from rnnlm_core.statistics import PICTURE as ZIPF
from rnnlm_core.statistics import Statistics
from rnnlm_core.store import write_atomically
from rnnlm_core.vocabulary import BuiltVocabulary
from tasks import tracked_runs, tracking, workspace
from tasks.tracking import FlowRun
from tasks.tracking_database import experiment_id
from tasks.wording import duration, finite_figure

TEMPLATE = "report.html.j2"
FILE = "report.html"
LONGEST_SLUG = 40
PACKAGES = ("rnnlm", "torch", "prefect", "mlflow", "numpy", "tokenizers")


@dataclass(frozen=True)
class Cell:
    """What a report tells of one cell."""

    row: Row
    history: tuple[Epoch, ...]
    samples: tuple[Sample, ...]
    device: str
    run_id: str
    revision: str
    """The git revision that trained it, "" if that is not known."""
    cached: bool
    dynamic_perplexity: float | None = None

    @property
    def seconds(self) -> float:
        """How long its epochs took, whenever that was."""
        return sum(epoch.seconds for epoch in self.history)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: `done`, `cached`, `failed` or `not reached`."""

    name: str
    cell: str
    outcome: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; `curves` and `zipf` are pictures as SVG."""

    run: FlowRun
    source: Source
    sha256: Mapping[str, str]
    corpus: Corpus
    vocabulary: BuiltVocabulary
    statistics: Statistics
    cells: tuple[Cell, ...]
    best_cell: str
    failures: Mapping[str, str]
    stages: tuple[Stage, ...]
    seconds: float
    curves: bytes
    zipf: bytes
    versions: Mapping[str, str]
    revision: str
    tracking_uri: str
    experiment_id: str
    written: datetime
    unlearnt: Mapping[str, str] = field(default_factory=dict)
    """Of cells without a figure of dynamic evaluation that was asked for: why."""

    @property
    def catalogued(self) -> CatalogueEntry | None:
        """The catalogue's entry of the corpus, if it has one."""
        return find_corpus(self.source.name) if self.source.kind in ("embedded", "catalogue") else None

    @property
    def settings(self) -> dict[str, str]:
        """The config, as MLflow has it."""
        return dict(self.run.parameters)

    @property
    def file_name(self) -> str:
        """A name that can be read in a list: preset, corpus, time and the start of the run's id."""
        names = f"{_slug(self.run.preset)}-{_slug(self.run.corpus)}"
        return f"{names}-{self.written:%Y%m%dT%H%M%SZ}-{self.run.parent_run_id[:8]}.html"

    def counted(self, outcome: str) -> int:
        """Return how many stages came out like that."""
        return sum(stage.outcome == outcome for stage in self.stages)

    def outcomes(self) -> dict[str, list[Stage]]:
        """Return the stages by name, in the order in which they ended, cells in their usual order."""
        order = {cell: place for place, cell in enumerate(known_names("cell"))}
        names = dict.fromkeys(stage.name for stage in self.stages)
        chosen = {name: [stage for stage in self.stages if stage.name == name] for name in names}
        return {name: sorted(stages, key=lambda stage: order.get(stage.cell, -1)) for name, stages in chosen.items()}

    def run_address(self, run_id: str) -> str:
        """Return where a server of MLflow shows a run; "" without a server."""
        if not self.tracking_uri.startswith(("http://", "https://")):
            return ""
        return f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def writing(self) -> list[list[tuple[str, str, str]]]:
        """Return, for each prefix, what every cell made of it: (cell, prefix, continuation)."""
        together = zip(*(cell.samples for cell in self.cells), strict=True)
        names = [cell.row.cell for cell in self.cells]
        return [[(name, *_divided(sample)) for name, sample in zip(names, row, strict=True)] for row in together]


def render(report: Report) -> str:
    """Return the report as one HTML page: styles and pictures inside, no scripts, nothing to load."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": finite_figure, "duration": duration, "svg": _data_address}
    return environment.get_template(TEMPLATE).render(report=report)


def publish(ledger: Ledger, compared: Compared, seconds: float) -> Path:
    """Write the report of a run under `artifacts/reports/`, give MLflow a copy, and return its path.

    Raises `ResourceError` if it cannot be written; what the run has made is kept in any case.
    """
    report = _gather(ledger, compared, seconds)
    page = render(report)
    path = workspace.reports() / report.file_name
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        remedy = "free some space or the folder, then run the same command again: nothing is trained again"
        raise ResourceError("cannot write the report", f"{path} ({error.strerror})", remedy) from error
    tracking.log_text(report.run.parent_run_id, page, FILE)
    return path


def _gather(ledger: Ledger, compared: Compared, seconds: float) -> Report:
    run, store = ledger.run, workspace.store()
    text: Text = ledger.results["download", ""]
    found: Statistics = ledger.results["statistics", ""]
    return Report(
        run=run,
        source=ledger.source,
        sha256=text.sha256,
        corpus=ledger.results["corpus", ""],
        vocabulary=ledger.results["vocabulary", ""],
        statistics=found,
        cells=tuple(_cell(ledger, row) for row in compared.rows),
        best_cell=compared.best_cell,
        failures={cell: str(error) for cell, error in ledger.failures.items()},
        stages=tuple(Stage(name, cell, outcome) for (name, cell), outcome in ledger.outcomes.items()),
        seconds=seconds,
        curves=vector(store.path(compared.handle) / PICTURE).read_bytes(),
        zipf=vector(store.path(found.handle) / ZIPF).read_bytes(),
        versions=versions(),
        revision=_revision(run.parent_run_id),
        tracking_uri=without_password(workspace.tracking_uri()),
        experiment_id=experiment_id(),
        written=datetime.now(UTC),
        unlearnt={cell: str(error) for cell, error in ledger.unlearnt.items()},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    installed = {found.name.lower() for found in metadata.distributions()}
    ours = {name: metadata.version(name) for name in PACKAGES if name in installed}  # ours may run from its folder
    return {"python": platform.python_version(), **ours}


def _cell(ledger: Ledger, row: Row) -> Cell:
    tracked, samples, cached = ledger.cells[row.cell]
    trained, run_id = tracked.trained, tracked.run_id
    learnt = ledger.dynamic_perplexity(row.cell)
    return Cell(row, trained.history, samples.samples, trained.device, run_id, _revision(run_id), cached, learnt)


def _revision(run_id: str) -> str:
    return tracked_runs.find_model_run(run_id).tags.get(tracked_runs.REVISION, "")


def _divided(sample: Sample) -> tuple[str, str]:
    """Return the part of a sample that was given and the part that was written."""
    if sample.text.startswith(sample.prefix):
        return sample.prefix, sample.text.removeprefix(sample.prefix)
    return "", sample.text


def _slug(name: str) -> str:
    """Return a name without what a file name, an address or a shell would trip over."""
    return re.sub(r"[^\w.]+", "-", name.lower())[:LONGEST_SLUG].strip("-.") or "text"


def _data_address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
