"""What `prefect.yaml` may say: every mistake in it is told, without a server and before anything is deployed.

Prefect itself passes over a key that it does not know and takes any parameter. `python -m flows.deployments [FILE]`
(part of `make check`) and `rnnlm up` refuse both, and what would have no effect. They refuse the keys of Prefect that
nobody can check without a server as well (automations, blocks, variables).
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.deployment_parameters import flow_at, parameters
from flows.deployment_runs import process_mistakes, schedule_mistakes, step_mistakes
from flows.deployment_shape import File, shape
from flows.deployment_text import HOLDS_ITSELF, Loader, definitions, filled, keys_and_anchors, shared, templates
from rnnlm_core.errors import ConfigError, RnnlmError
from tasks import workspace


def check(file: Path) -> None:
    """Raise `ConfigError` with one line per mistake of a file."""
    try:
        found = list(mistakes(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.name}: cannot be read: {error}") from error
    if found:
        raise ConfigError(*(f"{file.name}: {mistake}" for mistake in found))


def names(file: Path) -> list[str]:
    """Return the names of the deployments of a file without mistakes."""
    return [one["name"] for one in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]


def mistakes(text: str) -> Iterator[str]:
    """Yield every mistake of a `prefect.yaml`: where it is, the rule, and the value or the remedy."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        written = [] if root is None else [*keys_and_anchors(root, "", set(), ()), *definitions(root, loader)]
        yield from written
        if any(mistake.endswith(HOLDS_ITSELF) for mistake in written):
            return
        document = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        yield f"it is no YAML: {' '.join(str(error).split())}"
        return
    deployments = document.get("deployments") if isinstance(document, dict) else None
    again = [f"{place}{end}" for place in shared(deployments, "deployments", set()) for end in (".", "[", ":")]
    for mistake in _in_document(document):
        # What several have by one anchor is told of the first.
        if not mistake.startswith(tuple(again)):
            yield mistake


def _in_document(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from templates({key: value for key, value in document.items() if key != "definitions"}, "")
    document = filled(document)
    try:
        File.model_validate(document)
    except ValidationError as error:
        yield from shape(error)
    if isinstance(document, dict):
        yield from step_mistakes(document, "")
        deployments = document.get("deployments")
        yield from _deployments(deployments if isinstance(deployments, list) else [])


def _deployments(deployments: list[Any]) -> Iterator[str]:
    names: set[str] = set()
    for number, one in enumerate(deployments):
        path = f"deployments[{number}]"
        if not isinstance(one, dict):
            continue
        if isinstance(name := one.get("name"), str):
            if name in names:
                yield f"{path}.name: two deployments are called {name}: give another name"
            names.add(name)
        if one.get("schedules") and "concurrency_limit" not in one:
            yield f"{path}.concurrency_limit: it must be given where there is a schedule: two runs could meet"
        yield from step_mistakes(one, f"{path}.")
        yield from process_mistakes(one.get("work_pool"), f"{path}.work_pool.job_variables")
        schedules = one.get("schedules")
        schedules = [when for when in schedules if isinstance(when, dict)] if isinstance(schedules, list) else []
        yield from schedule_mistakes(schedules, f"{path}.schedules")
        if isinstance(entrypoint := one.get("entrypoint"), str):
            try:
                flow = flow_at(entrypoint)
            except ConfigError as error:
                yield f"{path}.entrypoint: {error}"
            else:
                yield from parameters(flow, one.get("parameters", {}), schedules, path)


def main() -> None:
    """Check a file, by default the project's; tell every mistake, one a line."""
    file = Path(sys.argv[1]) if sys.argv[1:] else workspace.DEPLOYMENTS
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]  # no server is asked, and a profile of somebody's is not at the home below
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"RNNLM_HOME": home, "PREFECT_HOME": home}
        workspace.prepare_environment()
        try:
            check(file)
        except RnnlmError as error:
            print("\n".join(f"error: {line}" for line in error.lines), file=sys.stderr)
            sys.exit(error.exit_code)
    print(f"{file.name}: no mistakes")


if __name__ == "__main__":
    main()
