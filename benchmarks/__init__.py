"""The benchmarks: rnnlm beside the book's own packages and plain PyTorch, in one run on one machine.

`python -m benchmarks [CASE ...] --json FILE` measures, `python -m benchmarks render FILE` writes the tables of
docs/performance.md. What is compared runs in processes of its own that take turns, block by block (A/B/A/B), so that
all meet the same machine; a ratio is made of figures of one run alone.
"""
