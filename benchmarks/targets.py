"""What the ratios should be: the project's own aims, written down before the figures; None where nobody aimed."""

# A training step at the book's size.
STEP_CPU = {
    "concise": {"rnn": 1.8, "gru": 2.0, "lstm": 1.2},
    "scratch": {"rnn": 2.5, "gru": 2.5, "lstm": 2.5},
}
STEP_GPU: dict[str, dict[str, float | None]] = {
    "concise": {"rnn": None, "gru": None, "lstm": 8.0},
    "scratch": {"rnn": None, "gru": None, "lstm": None},
}
# At word level a row is looked up where the book multiplies by one-hot rows.
WORD_CPU: dict[tuple[str, int], float] = {("lstm", 4580): 4.0}
CELLS_CPU, CELLS_GPU = 3.0, 20.0
TIME_TO_PERPLEXITY = {"gru": 8.0, "lstm": 8.0, "rnn": 3.0}
TEXT = {"char": 30.0, "word": 3.0}
MEMORY_AT_MOST = 1.15
GENERATE = {64: 20.0}
# The pipeline's own cost: of bare Prefect's time with ten cached tasks, and in seconds.
CACHED_RUN_AT_MOST = 1.3
CACHED_RUN_SECONDS = 6.0
HELP_SECONDS = 0.5
