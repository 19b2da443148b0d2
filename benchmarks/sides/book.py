"""The book's packages, through their own functions; what they print and plot is left out.

`d2l` 0.17.6 has the training loop of the chapters, and the concise cells. The GRU and LSTM from scratch stand in the
chapters alone, in neither package: here they are written from the equations, a product per gate, and run by the
package's own `RNNModelScratch` and `train_epoch_ch8`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.bound import GATES
from benchmarks.peers import CLASSIC, NEWEST, load
from benchmarks.turns import Turns
from rnnlm_core.process_usage import peak_bytes

LEARNING_RATE = 1.0
BATCH_SIZE, NUM_STEPS, HIDDEN, MAX_TOKENS = 32, 35, 256, 10_000


def training(
    turns: Turns,
    cell: str,
    kind: str,
    vocabulary: int,
    hidden: int,
    batch_size: int,
    num_steps: int,
    updates: int,
    device: str,
) -> None:
    """Train on noise with `train_epoch_ch8` (0.17.6); `kind` is concise or scratch."""
    d2l = load(CLASSIC)
    tokens = d2l.torch.randint(vocabulary, (updates * batch_size * num_steps + num_steps + 1,)).tolist()
    place = d2l.torch.device(device)
    net, updater = _net(d2l, kind, cell, vocabulary, hidden, place)
    loss = d2l.nn.CrossEntropyLoss()
    while True:
        turns.begin()
        minibatches = d2l.seq_data_iter_sequential(tokens, batch_size, num_steps)
        perplexity, _ = d2l.train_epoch_ch8(net, minibatches, loss, updater, place, False)
        turns.end(updates * batch_size * num_steps, perplexity=perplexity)


def newest(
    turns: Turns,
    cell: str,
    kind: str,
    vocabulary: int,
    hidden: int,
    batch_size: int,
    num_steps: int,
    updates: int,
    device: str,
) -> None:
    """Train on noise with `Trainer` (1.0.3), its drawing turned off: RNN from scratch, RNN and GRU concise."""
    d2l = load(NEWEST)
    if kind == "scratch":
        model = d2l.RNNLMScratch(d2l.RNNScratch(vocabulary, hidden), vocabulary, lr=LEARNING_RATE)
    else:
        layer = d2l.RNN(vocabulary, hidden) if cell == "rnn" else d2l.GRU(vocabulary, hidden, 1)
        model = d2l.RNNLM(layer, vocabulary, lr=LEARNING_RATE)
    model.board.display = False
    ids = d2l.torch.randint(vocabulary, (updates * batch_size, num_steps + 1))

    class Noise(d2l.DataModule):  # type: ignore[misc, name-defined]
        def get_dataloader(self, train: bool) -> Any:
            self.batch_size = batch_size
            return self.get_tensorloader((ids[:, :-1], ids[:, 1:]), train) if train else None

    trainer = d2l.Trainer(1, num_gpus=int(device != "cpu"), gradient_clip_val=1)
    trainer.prepare_data(Noise())
    trainer.prepare_model(model)
    trainer.optim = model.configure_optimizers()
    trainer.epoch = trainer.train_batch_idx = trainer.val_batch_idx = 0
    while True:
        turns.begin()
        trainer.fit_epoch()
        turns.end(updates * batch_size * num_steps)


def to_perplexity(
    turns: Turns, cell: str, novel: str, target: float, most_epochs: int, epochs_per_block: int, device: str
) -> None:
    """Train the concise cell with the book's settings until an epoch's perplexity is at most `target`."""
    d2l = load(CLASSIC)
    data = _time_machine(d2l, novel)
    place, loss = d2l.torch.device(device), d2l.nn.CrossEntropyLoss()
    d2l.torch.manual_seed(0)
    random.seed(0)
    turns.begin()
    net, updater = _net(d2l, "concise", cell, len(data.vocab), HIDDEN, place)
    for epoch in range(1, most_epochs + 1):
        perplexity, _ = d2l.train_epoch_ch8(net, data, loss, updater, place, False)
        reached = perplexity <= target
        if reached or epoch == most_epochs:
            turns.end(1, reached=reached, epoch=epoch, perplexity=perplexity)
            return
        if epoch % epochs_per_block == 0:
            turns.end(1, reached=False, epoch=epoch, perplexity=perplexity)
            turns.begin()


def cells(turns: Turns, novel: str, order: Sequence[str], epochs: int, device: str) -> None:
    """Train the concise cells one after the other, as the chapters do."""
    d2l = load(CLASSIC)
    data = _time_machine(d2l, novel)
    place, loss = d2l.torch.device(device), d2l.nn.CrossEntropyLoss()
    while True:
        turns.begin()
        perplexities = {}
        for cell in order:
            net, updater = _net(d2l, "concise", cell, len(data.vocab), HIDDEN, place)
            for _ in range(epochs):
                perplexities[cell], _ = d2l.train_epoch_ch8(net, data, loss, updater, place, False)
        turns.end(1, perplexity=perplexities)


def text(turns: Turns, path: str, level: str) -> None:
    """Clean a text, tokenise it, build the vocabulary and the list of ids, as `load_corpus_time_machine` does."""
    from pathlib import Path

    d2l = load(CLASSIC)
    d2l.download = lambda _: path  # `read_time_machine` reads what this returns
    while True:
        turns.begin()
        lines = d2l.read_time_machine()
        tokens = d2l.tokenize(lines, level)
        vocabulary = d2l.Vocab(tokens)
        corpus = [vocabulary[token] for line in tokens for token in line]
        turns.end(Path(path).stat().st_size, tokens=len(corpus), vocabulary=len(vocabulary), peak=peak_bytes())
        del lines, tokens, corpus


def generate(turns: Turns, cell: str, letters: str, hidden: int, prefixes: list[str], length: int, device: str) -> None:
    """Continue one prefix after the other with `predict_ch8`, with a model of random weights."""
    d2l = load(CLASSIC)
    d2l.torch.manual_seed(0)
    place = d2l.torch.device(device)
    vocabulary = d2l.Vocab(list(letters))
    net, _ = _net(d2l, "concise", cell, len(vocabulary), hidden, place)
    while True:
        turns.begin()
        samples = [d2l.predict_ch8(prefix, length, net, vocabulary, place) for prefix in prefixes]
        turns.end(len(prefixes) * length, characters=sum(len(sample) for sample in samples))


def _time_machine(d2l: Any, novel: str) -> Any:
    """Return the book's loader of the first 10,000 characters of the novel, which lies at `novel`."""
    d2l.download = lambda _: novel
    return d2l.SeqDataLoader(BATCH_SIZE, NUM_STEPS, False, MAX_TOKENS)


def _net(d2l: Any, kind: str, cell: str, vocabulary: int, hidden: int, device: Any) -> tuple[Any, Any]:
    """Return a net and its updater, as `train_ch8` makes it."""
    if kind == "concise":
        layer = {"rnn": d2l.nn.RNN, "gru": d2l.nn.GRU, "lstm": d2l.nn.LSTM}[cell](vocabulary, hidden)
        net = d2l.RNNModel(layer, vocabulary).to(device)
        return net, d2l.torch.optim.SGD(net.parameters(), LEARNING_RATE)
    scratch = d2l.RNNModelScratch(vocabulary, hidden, device, _parameters(cell), _zero_state(cell), _FORWARD[cell])
    return scratch, lambda batch_size: d2l.sgd(scratch.params, LEARNING_RATE, batch_size)


def _parameters(cell: str) -> Callable[[int, int, Any], list[Any]]:
    """Return the function that draws the parameters: three for each gate, two for the output."""

    def draw(vocabulary: int, hidden: int, device: Any) -> list[Any]:
        import torch

        shapes = [*[(vocabulary, hidden), (hidden, hidden), (hidden,)] * GATES[cell], (hidden, vocabulary)]
        weights = [torch.zeros(shape) if len(shape) == 1 else 0.01 * torch.randn(shape) for shape in shapes]
        return [tensor.to(device).requires_grad_() for tensor in (*weights, torch.zeros(vocabulary))]

    return draw


def _zero_state(cell: str) -> Callable[[int, int, Any], tuple[Any, ...]]:
    def zeros(batch_size: int, hidden: int, device: Any) -> tuple[Any, ...]:
        import torch

        return tuple(torch.zeros((batch_size, hidden), device=device) for _ in range(2 if cell == "lstm" else 1))

    return zeros


def _rnn(inputs: Any, state: Any, params: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """H = tanh(X W_xh + H W_hh + b_h); Y = H W_hq + b_q."""
    import torch

    W_xh, W_hh, b_h, W_hq, b_q = params
    (H,) = state
    outputs = []
    for X in inputs:
        H = torch.tanh(X @ W_xh + H @ W_hh + b_h)
        outputs.append(H @ W_hq + b_q)
    return torch.cat(outputs), (H,)


def _gru(inputs: Any, state: Any, params: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Z, R = σ(·); H̃ = tanh(X W_xh + (R ⊙ H) W_hh + b_h); H = Z ⊙ H + (1 - Z) ⊙ H̃."""
    import torch

    W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h, W_hq, b_q = params
    (H,) = state
    outputs = []
    for X in inputs:
        Z = torch.sigmoid(X @ W_xz + H @ W_hz + b_z)
        R = torch.sigmoid(X @ W_xr + H @ W_hr + b_r)
        candidate = torch.tanh(X @ W_xh + (R * H) @ W_hh + b_h)
        H = Z * H + (1 - Z) * candidate
        outputs.append(H @ W_hq + b_q)
    return torch.cat(outputs), (H,)


def _lstm(inputs: Any, state: Any, params: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """I, F, O = σ(·); C̃ = tanh(·); C = F ⊙ C + I ⊙ C̃; H = O ⊙ tanh(C)."""
    import torch

    W_xi, W_hi, b_i, W_xf, W_hf, b_f, W_xo, W_ho, b_o, W_xc, W_hc, b_c, W_hq, b_q = params
    H, C = state
    outputs = []
    for X in inputs:
        I = torch.sigmoid(X @ W_xi + H @ W_hi + b_i)  # noqa: E741 - the gate's name
        F = torch.sigmoid(X @ W_xf + H @ W_hf + b_f)
        O = torch.sigmoid(X @ W_xo + H @ W_ho + b_o)  # noqa: E741 - the gate's name
        candidate = torch.tanh(X @ W_xc + H @ W_hc + b_c)
        C = F * C + I * candidate
        H = O * torch.tanh(C)
        outputs.append(H @ W_hq + b_q)
    return torch.cat(outputs), (H, C)


_FORWARD = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}
