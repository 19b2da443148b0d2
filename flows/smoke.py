"""The smoke flow: the whole chain, tiny, and the checks that say whether it can be trusted."""

import math
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.language_model import language_model
from rnnlm_core.errors import RnnlmError
from rnnlm_core.presets import smoke as smoke_config
from tasks import scheduled_runs, tracked_models, tracked_runs
from tasks.caching import VerifiedSerializer

NUM_STAGES = 5 + 3 * 3 + 1


@dataclass(frozen=True)
class Check:
    """Something that must hold."""

    what: str
    held: bool


@flow(name="smoke", persist_result=False, result_serializer=VerifiedSerializer())
def smoke() -> dict[str, Any]:
    """Run the `smoke` preset twice and return what was checked (`checks`) and what both came to (`runs`).

    Meant for CI and for a first look at a new machine. Stages that were done before are found, not repeated.
    Raises `ChecksFailedError` if a check did not hold.
    """
    with scheduled_runs.claimed():
        outcome = _checked()
    if failed := [check["what"] for check in outcome["checks"] if not check["held"]]:
        raise ChecksFailedError(outcome, "; ".join(failed))
    return outcome


class ChecksFailedError(RnnlmError):
    """Something that must hold did not; carries what the flow would have returned."""

    def __init__(self, outcome: dict[str, Any], failed: str) -> None:
        super().__init__("checks failed", failed, "this is a bug: please report it")
        self.outcome = outcome


def _checked() -> dict[str, Any]:
    first, second = language_model("smoke"), language_model("smoke")
    checks = [
        Check("every stage ran", sum(first["tasks"].values()) == NUM_STAGES),
        Check("a second run repeats nothing", second["tasks"] == {"executed": 0, "cached": NUM_STAGES}),
        Check("a second run has the same figures", _figures(first) == _figures(second)),
    ]
    for cell, figures in first["cells"].items():
        checks += _cell_checks(cell, figures)
    checks.append(_champion_check(first["model"]["name"]))
    return {"checks": [vars(check) for check in checks], "runs": [first, second]}


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {cell: {**figures, "cached": None} for cell, figures in summary["cells"].items()}


def _champion_check(name: str) -> Check:
    config = smoke_config().generate
    (prefix,) = config.prefixes
    (text,) = tracked_models.predict(f"models:/{name}@champion", [prefix], length=config.length)
    held = text.startswith(prefix) and len(text) == len(prefix) + config.length
    return Check(f"MLflow loads the champion of {name}, and it writes", held)


def _cell_checks(cell: str, figures: dict[str, Any]) -> list[Check]:
    config = smoke_config()
    run = tracked_runs.find_model_run(figures["run_id"])
    vocabulary_size = int(run.metrics["vocabulary/size"])
    curve = tracked_runs.curve(figures["run_id"], "valid/perplexity")
    (prefix,) = config.generate.prefixes
    sample = figures["samples"][0]
    again = tracked_models.predict(
        run.tags["rnnlm.model_uri"],
        [prefix],
        length=config.generate.length,
        temperature=config.generate.temperature,
        seed=config.generate.seed,
    )
    return [
        Check(
            f"{cell}: test perplexity is finite and better than guessing",
            1 < figures["test_perplexity"] < vocabulary_size / 2,
        ),
        Check(
            f"{cell}: bits per character agree",
            math.isclose(2 ** figures["bits_per_char"], figures["test_perplexity"], rel_tol=1e-9),
        ),
        Check(
            f"{cell}: MLflow has the run, finished, with every epoch",
            run.status == "FINISHED" and len(curve) == config.train.epochs,
        ),
        Check(
            f"{cell}: the sample goes on from its prefix",
            sample.startswith(prefix) and len(sample) == len(prefix) + config.generate.length,
        ),
        Check(f"{cell}: MLflow loads the model, and it writes the same text", again == [sample]),
    ]
