"""What the ratios should be: the project's own aims, written down before the figures; None where nobody aimed.

"Several times" is read as three times at least.
"""

SEVERAL = 3.0

# A training step at the book's size. On one core both meet the same products: what remains is what stands around them.
STEP_CPU = {
    "concise": {"rnn": 2.0, "gru": 2.0, "lstm": 1.0},
    "scratch": {"rnn": 2.0, "gru": 2.3, "lstm": 1.8},
}
STEP_GPU = {"concise": 2.0, "scratch": 20.0}
# At word level a row is looked up where the book multiplies by one-hot rows. In the RNN the output is most of the work.
WORD_CPU: dict[str, float | None] = {"lstm": 4.3, "gru": SEVERAL, "rnn": None}
WORD_GPU = 1.2
CELLS = 1.7
TIME_TO_PERPLEXITY = SEVERAL
TEXT = {"char": 50.0, "word": 3.5}
MEMORY_AT_MOST = 1.15
GENERATE = {1: 1.0, 64: SEVERAL}
