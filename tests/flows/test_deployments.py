"""What `prefect.yaml` may say: the project's own passes, and each kind of mistake is told in a line of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows import deploy, deployments
from rnnlm_core.errors import ConfigError
from tasks import workspace

REAL = (workspace.PROJECT / "prefect.yaml").read_text(encoding="utf-8")
SCHEDULE = '      - slug: nightly\n        cron: "0 3 * * *"\n        timezone: Europe/Berlin\n'
NIGHTLY = "deployments[1].schedules[0]"
PARAMETERS = "deployments[1].parameters"
WEEKLY = "deployments[2].parameters"
STEP = "pull[0].prefect.deployments.steps.set_working_directory"


def changed(*edits: tuple[str, str]) -> str:
    """The real file with each text replaced, where it is first."""
    text = REAL
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def found(*edits: tuple[str, str]) -> list[str]:
    return list(deployments.mistakes(changed(*edits)))


def test_the_projects_own_file_has_no_mistake() -> None:
    assert found() == []


MISTAKES = {
    # keys
    "top": ("pull:\n", "pulls:\n", "pulls: unknown key: did you mean pull? (known: name, prefect-version, pull, "),
    "deployment": (
        "    schedules: []",
        "    schedulez: []",
        "deployments[0].schedulez: unknown key: did you mean sched",
    ),
    "pool": (
        "    name: rnnlm\n",
        "    name: rnnlm\n    type: docker\n",
        "deployments[0].work_pool.type: unknown key: ",
    ),
    "limit": ("    limit: 1", "    limit: 1\n    slots: 1", "deployments[0].concurrency_limit.slots: unknown key: "),
    "schedule": (
        "        interval:",
        "        intervall:",
        "deployments[3].schedules[0].intervall: unknown key: did you",
    ),
    "job": (
        "job_variables:\n",
        "job_variables:\n      envs: {}\n",
        "work_pool.job_variables.envs: unknown key: did you",
    ),
    "twice": ("tags: [rnnlm, smoke]", "tags: []\n    tags: []", "deployments[0].tags: the key is there twice (line "),
    "no Prefect": ("pull:\n", "triggers: []\npull:\n", "triggers: unknown key: known: name, prefect-version, pull,"),
    # YAML
    "no YAML": ("tags: [rnnlm, smoke]", "tags: [rnnlm", "it is no YAML: while parsing a flow sequence"),
    "a date": ("slug: watch", "slug: 2024-13-45", "it is no YAML: month must be in 1..12"),
    "object": ("slug: watch", "slug: !!python/name:os.system", "it is no YAML: could not determine a constructor"),
    "unused": ("definitions:\n", "definitions:\n  odd: &odd 1\n", "&odd: it is used nowhere: write `*odd`"),
    "anchor": (
        "  pool: &pool\n",
        "  pools: &pool\n",
        "definitions.pools: it must have the anchor of its name: write `p",
    ),
    "itself": ("  alone: &alone\n", "  alone: &alone\n    me: *alone\n", "definitions.alone.me: it holds itself"),
    "alias": ("*pool", "*poool", "it is no YAML: found undefined alias 'poool'"),
    # what must be there
    "no name": ("  - name: smoke\n    desc", "  - desc", "deployments[0].name: it must be given"),
    "no words": (
        "description: The whole chain, tiny, with its checks. Start it by hand.",
        'description: ""',
        "deployments[0].description: must say something. Got ''",
    ),
    "no limit": (
        "concurrency_limit: *alone\n    work_pool: *pool\n    schedules:\n",
        "work_pool: *pool\n    schedules:\n",
        "deployments[1].concurrency_limit: it must be given where there is a schedule",
    ),
    "no corpus": (
        "      corpus: python-docs\n",
        "      preset: smoke\n",
        "deployments[3].parameters.corpus: it must be given: the flow watch-corpus needs it",
    ),
    # values
    "name": ("name: smoke", "name: Smoke Test", "deployments[0].name: must be small letters and digits joined by hyph"),
    "same name": (
        "name: weekly-words",
        "name: smoke",
        "deployments[2].name: two deployments are called smoke: give an",
    ),
    "tags": ("tags: [rnnlm, smoke]", "tags: rnnlm", "deployments[0].tags: must be a valid list. Got 'rnnlm'"),
    "tag": ("tags: [rnnlm, smoke]", "tags: [rnnlm, on]", "deployments[0].tags[1]: must be a valid string. Got True"),
    "other pool": (
        "    name: rnnlm\n",
        "    name: default\n",
        "deployments[0].work_pool.name: must be rnnlm, the pool",
    ),
    "version": ("prefect-version: 3.8.8", "prefect-version: 2.20.0", "prefect-version: must be of the release that is"),
    "number": ("prefect-version: 3.8.8", "prefect-version: 3.8", "prefect-version: must be a valid string. Got 3.8"),
    "limit 0": ("limit: 1", "limit: 0", "deployments[0].concurrency_limit.limit: must be greater than or equal to 1. "),
    "limit yes": (
        "limit: 1",
        "limit: yes",
        "deployments[0].concurrency_limit.limit: must be a valid integer. Got True",
    ),
    "strategy": (
        "CANCEL_NEW",
        "CANCEL",
        "concurrency_limit.collision_strategy: unknown strategy: CANCEL: did you mean ",
    ),
    "variable": ("DO_NOT_TRACK", "DO_NOT_TRAK", "env.DO_NOT_TRAK: unknown variable: did you mean DO_NOT_TRACK?"),
    "ours": ("DO_NOT_TRACK", "RNNLM_CRASH", "env.RNNLM_CRASH: unknown variable: "),
    "Prefect's": ("DO_NOT_TRACK", "PREFECT_TEST_MODUS", "env.PREFECT_TEST_MODUS: unknown variable: "),
    "its value": ('DO_NOT_TRACK: "1"', "DO_NOT_TRACK: 1", "work_pool.job_variables.env.DO_NOT_TRACK: 1 is not valid"),
    "template": (
        "$PWD",
        "$PWDD",
        "set_working_directory.directory: a template must be `{{ $NAME }}`, of an environment",
    ),
    "block": (
        "corpus: python-docs",
        'corpus: "{{ prefect.variables.text }}"',
        "deployments[3].parameters.corpus: a temp",
    ),
    # flows
    "no module": (
        "flows.smoke.smoke",
        "flows.smok.smoke",
        "entrypoint: cannot be imported: ModuleNotFoundError: No mo",
    ),
    "no flow": (
        "flows.smoke.smoke",
        "flows.smoke.smoky",
        "deployments[0].entrypoint: no flow: smoky: did you mean smok",
    ),
    "function": (
        "flows.smoke.smoke",
        "flows.summary.RunSummary",
        "entrypoint: no flow: RunSummary: flows.summary has n",
    ),
    "a file": (
        "flows.smoke.smoke",
        "flows/smoke.py:smoke",
        "deployments[0].entrypoint: must be a module and a name in",
    ),
    # steps
    "step": (
        "set_working_directory",
        "set_work_directory",
        "set_work_directory: no function: did you mean set_working_",
    ),
    "argument": (
        "      directory:",
        "      folder: x\n      directory:",
        f"{STEP}.folder: unknown argument: known: dir",
    ),
    "no argument": ('      directory: "{{ $PWD }}"', "      {}", f"{STEP}.directory: it must be given"),
    "its type": ('directory: "{{ $PWD }}"', "directory: 7", f"{STEP}.directory: must be a valid string. Got 7"),
    # parameters
    "parameter": (
        "      preset: time-machine\n",
        "      presets: smoke\n",
        f"{PARAMETERS}.presets: unknown parameter: ",
    ),
    "none": (
        "    concurrency_limit",
        "    parameters: {preset: smoke}\n    concurrency_limit",
        "deployments[0].parameters.preset: unknown parameter: the flow smoke takes none",
    ),
    "preset": (
        "preset: time-machine\n",
        "preset: time-machin\n",
        f"{PARAMETERS}.preset: must be 'quickstart', 'smoke'",
    ),
    "corpus": ("corpus: ptb", "corpus: pbt", f"{WEEKLY}.corpus: unknown corpus: pbt: did you mean ptb?"),
    "path": ("corpus: ptb", "corpus: /no/such.txt", f"{WEEKLY}.corpus: no such file or folder: /no/such.txt: give a "),
    "cell": ("[gru, lstm]", "[gru, lstn]", f"{WEEKLY}.cells[1]: must be 'rnn', 'gru', 'lstm' or 'ngram'. Got 'lstn'"),
    "twice a cell": ("[gru, lstm]", "[gru, gru]", f"{WEEKLY}: `cells` must name each cell once. Got gru twice"),
    "key": (
        "train.epochs",
        "trian.epochs",
        f"{WEEKLY}.changes.trian.epochs: unknown config key: trian.epochs: did you",
    ),
    "type": (
        "train.epochs: 6",
        'train.epochs: "6"',
        f"{WEEKLY}.changes.train.epochs: must be a valid integer. Got '6'",
    ),
    "range": (
        "train.epochs: 6",
        "train.epochs: 0",
        f"{WEEKLY}.changes.train.epochs: must be greater than or equal to 1",
    ),
    "together": (
        "train.epochs: 6",
        "train.decay: 3.0",
        f"{WEEKLY}: `train.decay` has no effect with schedule cosine: ",
    ),
    "no JSON": ("corpus: ptb", "corpus: 2024-01-01", f"{WEEKLY}.corpus: must be text, numbers, true, false, lists and"),
    # what has no effect
    "default": (
        "preset: time-machine\n",
        "preset: quickstart\n",
        f"{PARAMETERS}.preset: no effect: it is 'quickstart' ",
    ),
    "its corpus": (
        "preset: time-machine\n",
        "preset: time-machine\n      corpus: time-machine\n",
        f"{PARAMETERS}.corpus: no effect: the preset time-machine has it anyway: delete it",
    ),
    "its cells": (
        "preset: time-machine\n",
        "preset: time-machine\n      cells: [rnn, gru, lstm]\n",
        f"{PARAMETERS}.cells: no effect: the preset time-machine has it anyway: delete it",
    ),
    "its epochs": ("train.epochs: 6", "train.epochs: 20", f"{WEEKLY}.changes.train.epochs: no effect: it is 20 anyway"),
    "of the text": (
        "train.epochs: 6",
        "corpus.split: given",
        f"{WEEKLY}.changes.corpus.split: no effect: it is 'given'",
    ),
    "no changes": (
        "preset: time-machine\n",
        "preset: time-machine\n      changes: {}\n",
        f"{PARAMETERS}.changes: no effect: it changes nothing: delete it",
    ),
    # schedules
    "cron": ('"0 3 * * *"', '"0 25 * * *"', f'{NIGHTLY}.cron: Invalid cron string: "0 25 * * *"'),
    "never": ('"0 3 * * *"', '"0 3 30 2 *"', f"{NIGHTLY}.cron: it never comes. Got '0 3 30 2 *'"),
    "over": (
        SCHEDULE,
        '      - rrule: "FREQ=DAILY;UNTIL=20200102T000000"\n        timezone: UTC\n',
        f"{NIGHTLY}.rrule: it never comes. Got 'FREQ=DAILY;",
    ),
    "rrule": (SCHEDULE, "      - rrule: FREQ=OFTEN\n        timezone: UTC\n", f"{NIGHTLY}.rrule: Invalid RRule string"),
    "no place": (
        "        timezone: Europe/Berlin\n",
        "",
        f"{NIGHTLY}.timezone: it must be given: the hour of a cron is ",
    ),
    "place": ("Europe/Berlin", "Europe/Bärlin", f'{NIGHTLY}: Invalid timezone: "Europe/Bärlin"'),
    "interval 0": (
        "interval: 3600",
        "interval: 0",
        "deployments[3].schedules[0].interval: must be greater than 0. Got 0",
    ),
    "for ever": (
        "interval: 3600",
        "interval: 1.0e+300",
        "schedules[0].interval: must be seconds that the calendar holds",
    ),
    "text": ("interval: 3600", "interval: hourly", "schedules[0].interval: must be a valid number. Got 'hourly'"),
    "two": (
        "interval: 3600",
        'interval: 3600\n        cron: "0 3 * * *"',
        "exactly one of cron, interval, rrule must be given. Got cron and interval",
    ),
    "neither": (
        "        interval: 3600",
        "        active: true",
        "exactly one of cron, interval, rrule must be given. Got n",
    ),
    "day_or": (
        "interval: 3600",
        "interval: 3600\n        day_or: true",
        "schedules[0].day_or: no effect without cron: de",
    ),
    "slugs": (
        SCHEDULE,
        SCHEDULE + SCHEDULE,
        "deployments[1].schedules[1].slug: two schedules are called nightly: give",
    ),
    "theirs": (
        "interval: 3600",
        "interval: 3600\n        parameters: {preset: quickstart}",
        "deployments[3].schedules[0].parameters.preset: no effect: it is 'quickstart' anyway: delete it",
    ),
    "unknown": (
        "interval: 3600",
        "interval: 3600\n        parameters: {epochs: 3}",
        "deployments[3].schedules[0].parameters.epochs: unknown parameter: known: corpus, preset, cells,",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_its_rule(kind: str) -> None:
    old, new, told = MISTAKES[kind]
    assert told in "\n".join(found((old, new)))


@pytest.mark.parametrize(
    "kind",
    ["deployment", "no flow", "parameter", "cron", "its epochs", "theirs", "same name", "type", "variable", "strategy"],
)
def test_a_mistake_is_told_once(kind: str) -> None:
    old, new, _ = MISTAKES[kind]
    assert len(found((old, new))) == 1


def test_two_mistakes_of_a_kind_are_told_twice() -> None:
    one = ('cron: "0 3 * * *"', "cron: never"), ('cron: "0 4 * * 0"', "cron: never")
    assert [mistake[:14] for mistake in found(*one)] == ["deployments[1]", "deployments[2]"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    kinds = ["top", "deployment", "no flow", "variable", "parameter", "cron", "key", "cell", "interval 0"]
    file = tmp_path / "prefect.yaml"
    file.write_text(changed(*(MISTAKES[kind][:2] for kind in kinds)))
    with pytest.raises(ConfigError) as error:
        deployments.check(file)
    lines = error.value.lines
    for kind in kinds:
        assert any(MISTAKES[kind][2] in line for line in lines), kind
    assert all(line.startswith("prefect.yaml: ") and "\n" not in line for line in lines)
    assert error.value.exit_code == 2


def keys() -> list[tuple[int, int, str]]:
    """Where each key of the real file begins and ends in its text."""
    found, seen = {}, set()

    def look(node: yaml.Node) -> None:
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        for one in node.value:
            if isinstance(node, yaml.MappingNode):
                found[one[0].start_mark.index] = (one[0].start_mark.index, one[0].end_mark.index, one[0].value)
                look(one[1])
            else:
                look(one)

    look(yaml.compose(REAL, Loader=yaml.SafeLoader))
    return list(found.values())


SLIPS: dict[str, Callable[[str], str]] = {
    "doubled": lambda key: key[0] + key,
    "capital": str.swapcase,
    "gone": lambda key: key[1:],
}


@pytest.mark.parametrize(("begin", "end", "key"), [pytest.param(*at, id=f"{at[2]}-{at[0]}") for at in keys()])
def test_no_key_can_be_misspelt(begin: int, end: int, key: str) -> None:
    for slip, write in SLIPS.items():
        wrong = write(key)
        assert wrong != key
        text = REAL[:begin] + wrong + REAL[end:]
        assert list(deployments.mistakes(text)), f"{slip}: {wrong}"


def test_the_environment_of_other_programs_is_their_own_affair() -> None:
    names = "AWS_ACCESS_KEY_ID OMP_NUM_THREADS CUDA_VISIBLE_DEVICES HTTPS_PROXY no_proxy TZ MLFLOW_S3_ENDPOINT_URL"
    names += " PREFECT_API_URL PREFECT_LOGGING_LEVEL PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL RNNLM_HOME"
    added = "".join(f'        {name}: "1"\n' for name in names.split())
    assert found(("      env:\n", f"      env:\n{added}")) == []


def test_a_schedule_may_have_parameters_and_be_an_rrule() -> None:
    other = (
        '      - slug: monthly\n        rrule: "FREQ=MONTHLY;BYDAY=1MO"\n        timezone: UTC\n        active: false\n'
    )
    other += "        parameters: {cells: [lstm], changes: {train.epochs: 20}}\n"
    assert found((SCHEDULE, SCHEDULE + other)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "deployments: 7",
        "deployments: [7]",
        "deployments: [{}]",
        "? [1]\n: 2",
        "1: 2",
        "pull: 3",
        "pull: [{}]",
        "deployments: [{schedules: 3, parameters: []}]",
        "deployments: [{schedules: [1], work_pool: 3, entrypoint: [], name: {}}]",
        "deployments: [{entrypoint: flows.retrain.retrain, parameters: {1: 2, changes: 3}}]",
        "a: 1\n---\nb: 2",
        "definitions: 3",
        "definitions: [&a 1]",
        "\x00",
    ],
)
def test_what_is_something_else_altogether_is_refused(text: str) -> None:
    assert list(deployments.mistakes(text))


def test_a_bad_file_is_refused_before_anything_is_deployed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect.yaml").write_text(changed(MISTAKES["deployment"][:2]))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(workspace, "DEPLOYMENTS", tmp_path / "prefect.yaml")
    monkeypatch.setattr(deploy, "prefect", lambda *arguments: asked.append(arguments))
    with pytest.raises(ConfigError, match=r"deployments\[0\]\.schedulez: unknown key"):
        deploy.deploy()
    assert asked == []


@pytest.mark.slow
def test_the_command_tells_each_mistake_and_writes_nothing(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("flows", "tasks", "rnnlm_core"):
        shutil.copytree(workspace.PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "prefect.yaml"):
        shutil.copy(workspace.PROJECT / name, project)
    before = sorted(project.rglob("*"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RNNLM_", "PREFECT_"))}
    environment |= {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PYTHONDONTWRITEBYTECODE": "1", "PWD": str(project)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "flows.deployments", *arguments]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    right = run()
    assert (right.returncode, right.stdout, right.stderr) == (0, "prefect.yaml: no mistakes\n", "")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(changed(*(MISTAKES[kind][:2] for kind in ("deployment", "cron"))))
    told = run(str(wrong))
    assert (told.returncode, told.stdout) == (2, "")
    assert [line[:35] for line in told.stderr.splitlines()] == [
        "error: wrong.yaml: deployments[0].s",
        "error: wrong.yaml: deployments[1].s",
    ]
    assert sorted(project.rglob("*")) == before
