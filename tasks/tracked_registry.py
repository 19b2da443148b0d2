"""The registry: each corpus has a registered model, and the best cell of each run is a version of it.

What a version says of itself is written as it is created; its verdict, in `tasks.tracked_champion`, as it is judged.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from rnnlm_core.champion import PREFIX, Candidate, registered_name
from rnnlm_core.config import NGRAM
from rnnlm_core.crashpoints import crashpoint
from rnnlm_core.download import without_password
from rnnlm_core.errors import DataError
from rnnlm_core.presets import smoke
from tasks.tracked_runs import logged
from tasks.tracking_database import client, has_database, is_missing, is_there, over_http, unreachable

CHAMPION = "champion"
WON = "rnnlm.promoted_because"
LOST = "rnnlm.not_promoted"
OVER = "rnnlm.no_longer_champion"
OURS = f"name LIKE '{PREFIX}%'"


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    run_id: str
    model_uri: str
    """The logged model behind it, `models:/m-…`."""
    created: float
    champion: bool
    tags: dict[str, str] = field(repr=False)

    @property
    def uri(self) -> str:
        """The address of this version, whoever is the champion."""
        return f"models:/{self.name}/{self.number}"

    @property
    def cell(self) -> str:
        """What was trained: a recurrent cell, or ngram."""
        return self.tags.get("rnnlm.cell", "?")

    @property
    def valid_perplexity(self) -> float | None:
        """Perplexity on the validation split, None where there is none."""
        return _figure(self.tags.get("rnnlm.valid_perplexity"))

    @property
    def test_perplexity(self) -> float | None:
        """Perplexity on the test split, None where it was not measured."""
        return _figure(self.tags.get("rnnlm.test_perplexity"))

    @property
    def judged(self) -> bool:
        """Whether it says why it is the champion, or why not."""
        return WON in self.tags or (LOST in self.tags and not self.champion)

    @property
    def reason(self) -> str:
        """Why it is the champion, or why not (any more)."""
        told = [WON] if self.champion else [OVER, LOST]
        return next((self.tags[key] for key in told if key in self.tags), "not judged yet")

    @property
    def candidate(self) -> Candidate:
        """What the rule needs to know."""
        about = [self.tags.get(f"rnnlm.{key}", "") for key in ("corpus_sha256", "tokenizer", "split")]
        return Candidate(self.number, self.valid_perplexity, *about)


def champions() -> dict[str, Version]:
    """Return the champion of each registered model of ours that has one, by the name of the model."""
    numbers = {model.name: model.aliases[CHAMPION] for model in _models(OURS) if CHAMPION in model.aliases}
    return {name: version(name, int(number), int(number)) for name, number in numbers.items()}


def versions(name: str = "") -> list[Version]:
    """Return the versions of one registered model, or of all of ours: by name, newest first."""
    query = f"name = '{name}'" if name else OURS
    holders = {model.name: champion_of(model) for model in _models(query)}
    ours = [as_version(one, holders.get(one.name)) for one in _pages(client().search_model_versions, query)]
    return sorted(ours, key=lambda one: (one.name, -one.number))


def faults() -> Iterator[str]:
    """Yield each champion whose files are not where MLflow's database says they are; a server sees to its own."""
    if over_http() or not has_database():
        return
    for name, one in champions().items():
        place = urlsplit(client().get_model_version_download_uri(name, str(one.number)))
        folder = Path(unquote(place.path))
        if place.scheme in ("", "file") and not folder.exists():
            remedy = f"restore them, or `rnnlm promote --rollback {name}`"
            yield f"the champion of {name}, version {one.number}, has lost its files: {folder}: {remedy}"


def _models(query: str) -> list[RegisteredModel]:
    return list(_pages(client().search_registered_models, query))


def _pages(search: Callable[..., Any], query: str) -> Iterator[Any]:
    """Yield everything that a search of MLflow finds, page after page."""
    token = None
    while True:
        page = search(query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def champion_of(model: RegisteredModel) -> int | None:
    """Return the number of the version that has the alias."""
    return int(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None


def registered_model(name: str) -> RegisteredModel:
    """Return a registered model; raises `DataError`, which lists the known ones, if there is none of this name."""
    try:
        return client().get_registered_model(name)
    except MlflowException as error:
        if not is_missing(error):
            raise unreachable(error) from error
        raise _unknown_model(name, [model.name for model in _models(OURS)]) from error


def model_of(corpus: str) -> str:
    """Return the name of the registered model of a corpus (or of that name); raises `DataError` if there is none."""
    names = {model.name for model in _models(OURS)}
    for name in (registered_name(corpus), corpus):
        if name in names:
            return name
    raise _unknown_model(corpus, names)


def _unknown_model(name: str, known: Iterable[str]) -> DataError:
    listed = ", ".join(sorted(known)) or "none yet, train with `rnnlm run`"
    return DataError("no such registered model", without_password(name), f"known: {listed}")


def version(name: str, number: int, champion: int | None) -> Version:
    """Return a version; raises `DataError` if there is none of this number."""
    try:
        return as_version(client().get_model_version(name, str(number)), champion)
    except MlflowException as error:
        if not is_missing(error):
            raise unreachable(error) from error
        raise DataError("no such version", f"{name}/{number}", "`rnnlm models` lists the versions there are") from error


def as_version(one: ModelVersion, champion: int | None) -> Version:
    """Return a version of MLflow as ours."""
    number = int(one.version)
    return Version(
        name=str(one.name),
        number=number,
        run_id=str(one.run_id),
        model_uri=str(one.source),
        created=one.creation_timestamp / 1000,
        champion=number == champion,
        tags=dict(one.tags),
    )


def name_for(preset: str, corpus: str) -> str:
    """Return the name of the registered model of a corpus.

    What the smoke preset trains on its share of a text has a name of its own: it is no measure for other models.
    """
    own = preset == "smoke" and corpus == smoke().corpus.name
    return registered_name(preset if own else corpus)


def find_version(name: str, run: Run) -> int | None:
    """Return the number of the version that holds a run's model."""
    found = client().search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'")
    return next((int(one.version) for one in found if one.source == model_uri(run)), None)


def create_version(name: str, run: Run, corpus: str) -> int:
    """Make a run's model a version, and return its number."""
    uri = model_uri(run)
    try:
        client().get_registered_model(name)
    except MlflowException as error:
        if not is_missing(error):
            raise unreachable(error) from error
        about = f"The best cells trained on {corpus}. `{CHAMPION}` has the lowest validation perplexity."
        try:
            client().create_registered_model(name, tags={"rnnlm.corpus": corpus}, description=about)
        except MlflowException as late:  # a process of another host was faster
            if not is_there(late):
                raise
    model_id = uri.removeprefix("models:/")
    created = client().create_model_version(
        name, uri, run.info.run_id, tags=_facts(run, corpus), description=_description(run), model_id=model_id
    )
    crashpoint("version registered")
    # So that MLflow shows the version on the page of the logged model, as `mlflow.register_model` does.
    listed = json.loads(client().get_logged_model(model_id).tags.get("mlflow.modelVersions", "[]"))
    known = json.dumps([*listed, {"name": name, "version": created.version}])
    client().set_logged_model_tags(model_id, {"mlflow.modelVersions": known})
    return int(created.version)


def tag_version(name: str, number: int, key: str, value: str) -> None:
    """Set a tag of a version."""
    client().set_model_version_tag(name, str(number), key, value)


def model_uri(run: Run) -> str:
    """Return the address of the model that a run has logged; raises `DataError` if it has none."""
    uri = run.data.tags.get("rnnlm.model_uri")
    if uri is None:
        raise DataError("this run has no model", f"{run.info.run_id} ({run.info.status})", "run the training again")
    return str(uri)


def _facts(run: Run, corpus: str) -> dict[str, str]:
    tags, metrics, parameters = run.data.tags, run.data.metrics, run.data.params
    figures = {"valid_perplexity": "best/valid_perplexity", "test_perplexity": "test/perplexity"}
    facts = {
        "corpus": corpus,
        "split": parameters.get("corpus.split", ""),
        "tokenizer": _tokenizer(parameters),
        **{key: tags.get(f"rnnlm.{key}", "") for key in ("cell", "preset", "corpus_sha256", "model_sha256")},
        **{key: repr(logged(metrics[name])) for key, name in figures.items() if name in metrics},
    }
    return {f"rnnlm.{key}": value for key, value in facts.items()}


def _tokenizer(parameters: dict[str, str]) -> str:
    """Return how a text was cut, in words."""
    level = parameters.get("tokenizer.level", "?")
    size = f" {parameters.get('tokenizer.bpe_size')}" if level == "bpe" else ""
    lines = " with <eos>" if parameters.get("tokenizer.eos") == "line" else ""
    rare = parameters.get("tokenizer.min_freq", "1")
    return f"{level}{size}{lines}" + (f", min_freq {rare}" if rare != "1" else "")


def _description(run: Run) -> str:
    metrics, parameters, tags = run.data.metrics, run.data.params, run.data.tags
    names = {"validation": "best/valid_perplexity", "test": "test/perplexity", "training": "best/train_perplexity"}
    figures = [f"{metrics[name]:,.2f} on {split}" for split, name in names.items() if name in metrics]
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    size = "order" if tags.get("rnnlm.cell") == NGRAM else "hidden_size"
    return (
        f"{tags.get('rnnlm.cell', '?')}, {size.replace('_', ' ')} {parameters.get(f'model.{size}', '?')}: "
        f"perplexity {', '.join(figures) or 'not measured'} "
        f"(preset {tags.get('rnnlm.preset', '?')}, [run {run.info.run_id[:8]}]({page}))."
    )


def _figure(text: str | None) -> float | None:
    return None if text is None else float(text)
