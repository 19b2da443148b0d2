"""The model card: one page of Markdown that goes with a model (Mitchell et al. 2019, "Model Cards")."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rnnlm_core.catalogue import find_corpus
from rnnlm_core.config import NGRAM
from rnnlm_core.corpus import Corpus
from rnnlm_core.errors import one_line
from rnnlm_core.outcomes import Trained
from rnnlm_core.saved_model import SavedModel

LONGEST_CELL = 200
_CELLS = {"rnn": "an RNN (tanh)", "gru": "a GRU", "lstm": "an LSTM"}
_WHILE_TRAINING = (
    "The training figure is a mean over the epoch, while the weights change, with dropout if there is any."
)
_AFTER_COUNTING = "The training figure is that of the finished model on the text that it was counted on."
_OWN_LICENCE = "not known here: a text of its user's own"


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on: the corpus as the config names it and as it is shown, its artifact, its ids."""

    given_name: str
    shown_name: str
    corpus: Corpus
    vocabulary_sha256: str


def model_card(
    saved: SavedModel, trained: Trained, source: TrainedOn, settings: Mapping[str, str], address: str
) -> str:
    """Return the card of a model as it is known when the training ends.

    What is measured later, on the test split, is no part of it: the card says where that stands.

    Args:
        saved: the model.
        trained: its training.
        source: its text. The licence is the catalogue's; of another text none is known.
        settings: the config keys it depends on, with their values; `corpus.name` is left out, which may be a path of
            the machine that trained.
        address: the URI under which MLflow has the model.
    """
    best = trained.best
    entry = find_corpus(source.given_name)
    kept = {key: value for key, value in settings.items() if key != "corpus.name"}
    digests = {f"SHA-256 of the text `{file.name}`": file.text_sha256 for file in entry.files} if entry else {}
    counted = trained.cell == NGRAM
    when = "" if counted else f", while training epoch {trained.best_epoch}, the one kept"
    figures = [(f"train{when}", f"{best.train_perplexity:.4f}")]
    if best.valid_perplexity is not None:
        figures.append(("valid" if counted else "valid, after it", f"{best.valid_perplexity:.4f}"))
    tokens = ", ".join(f"{split} {facts.num_tokens:,}" for split, facts in source.corpus.splits.items())
    sections = [
        f"# {trained.cell.upper()} language model of {_cell(source.shown_name)}",
        f"{_kind(saved, trained)}. It continues texts and scores them. "
        f"Trained with rnnlm{_own_version()}; weights as safetensors, nothing pickled; loads on any device.",
        "## Load",
        f'```python\nmlflow.pyfunc.load_model("{address}").predict(["some text"], params={{"mode": "score"}})\n```',
        "Without `params` it continues the text; the signature lists the parameters.",
        "## Corpus",
        _table(
            ("", ""),
            [
                ("name", source.shown_name),
                ("text", entry.title if entry else "no corpus of the catalogue"),
                ("licence", entry.licence if entry else _OWN_LICENCE),
                ("tokens", tokens),
                *digests.items(),
                ("SHA-256 of the corpus (token ids)", source.corpus.handle.sha256),
                ("SHA-256 of the vocabulary", source.vocabulary_sha256),
            ],
        ),
        "## Figures",
        _table(("split", "perplexity per token"), figures),
        f"{_AFTER_COUNTING if counted else _WHILE_TRAINING} This card was written before the test split was measured: "
        "its figures stand beside the model in MLflow, as the metrics `test/*`.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(saved, best.valid_perplexity is None)),
        "## Settings",
        _table(("key", "value"), [("cell", trained.cell), ("trained on", trained.device), *kept.items()]),
    ]
    return "\n\n".join(sections) + "\n"


def _kind(saved: SavedModel, trained: Trained) -> str:
    """Return in words what the model is and what it predicts from."""
    given = f"predicts the next of {len(saved.vocabulary):,} {saved.tokenizer.noun} from"
    if trained.cell != NGRAM:
        size = f"{_cell_title(trained.cell)} of {trained.num_parameters:,} parameters"
        return f"A recurrent language model: {size} that {given} all before it"
    config = saved.model.config
    discounts = "modified " if config.discounts == "modified" else ""
    size = f"interpolated {discounts}Kneser-Ney of order {config.order}, {trained.num_parameters:,} n-grams"
    line = ", none of another line" if saved.tokenizer.about["eos"] == "line" else ""
    return f"An n-gram language model: {size}, that {given} the {config.order - 1} before it{line}"


def _cell_title(cell: str) -> str:
    from rnnlm_core.step_layer import find_cell

    return _CELLS[cell] if cell in _CELLS else find_cell(cell).title or f"the cell {cell}"


def _limits(saved: SavedModel, unmeasured: bool) -> list[str]:
    cut = saved.tokenizer
    complete = "Every text can be read: all bytes are known." if cut.alphabet else (
        f"Other {cut.noun} than those of its vocabulary are refused, or read as `<unk>` on request."
    )  # fmt: skip
    limits = [
        "It has learnt one text and writes in its manner; what it writes is not information.",
        complete,
        f"It reads a text after the normaliser `{saved.normalizer}`, cut into {cut.noun}"
        + (", with one `<eos>` per line." if cut.about["eos"] == "line" else "."),
        "Perplexities compare only between models of the same tokens; bits per character compare across tokenizers.",
        "The licence of the text may restrict what may be done with the model and what it writes.",
    ]
    if unmeasured:
        limits.append("There was no validation split: the last epoch was kept, and nothing was held out to choose it.")
    return limits


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {_cell(left)} | {_cell(right)} |" for left, right in lines)


def _cell(text: str) -> str:
    """Return a text that cannot leave its place on the page."""
    shown = one_line(text)
    shown = shown if len(shown) <= LONGEST_CELL else shown[: LONGEST_CELL - 1] + "…"
    return shown.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _own_version() -> str:
    try:
        return f" {version('rnnlm')}"
    except PackageNotFoundError:  # run from its source folder
        return ""
