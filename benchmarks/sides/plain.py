"""Plain PyTorch: the loop that anybody would write around a layer of `torch.nn`."""

from benchmarks.turns import Turns


def training(
    turns: Turns, cell: str, vocabulary: int, hidden: int, batch_size: int, num_steps: int, updates: int, device: str
) -> None:
    """Train on noise; a block is one pass over `updates` minibatches."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (batch_size, updates * num_steps + 1), device=device)
    layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](vocabulary, hidden).to(device)
    head = nn.Linear(hidden, vocabulary).to(device)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    while True:
        turns.begin()
        state = None
        total = torch.zeros((), device=device)
        for start in range(0, updates * num_steps, num_steps):
            x = ids[:, start : start + num_steps].t()
            y = ids[:, start + 1 : start + 1 + num_steps].t()
            outputs, state = layer(F.one_hot(x, vocabulary).float(), state)
            loss = F.cross_entropy(head(outputs).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            total += loss.detach()
            state = tuple(part.detach() for part in state) if cell == "lstm" else state.detach()
        turns.end(updates * batch_size * num_steps, loss=float(total) / updates)
