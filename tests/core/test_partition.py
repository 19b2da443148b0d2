from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnlm_core.config import TrainConfig
from rnnlm_core.partition import PARTITIONS

both = pytest.mark.parametrize("name", PARTITIONS)
sizes = {
    "batch_size": st.integers(1, 6),
    "num_steps": st.integers(1, 7),
    "extra": st.integers(0, 80),
    "seed": st.integers(0, 2**32 - 1),
}


def fewest(name: str, batch_size: int, num_steps: int) -> int:
    return TrainConfig(partition=name, batch_size=batch_size, num_steps=num_steps).fewest_tokens


def epoch(name: str, num_tokens: int, batch_size: int, num_steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """An epoch over the tokens 0, 1, 2, …: each token is its own position."""
    generator = torch.Generator().manual_seed(seed)
    return list(PARTITIONS[name](torch.arange(num_tokens), batch_size, num_steps, generator))


def offset_of(name: str, batches: list[tuple[Tensor, Tensor]], num_steps: int) -> int:
    first = int(batches[0][0][0, 0])
    return first if name == "sequential" else first % num_steps


@both
@given(**sizes)
def test_targets_are_inputs_shifted_by_one(name: str, batch_size: int, num_steps: int, extra: int, seed: int) -> None:
    batches = epoch(name, fewest(name, batch_size, num_steps) + extra, batch_size, num_steps, seed)
    assert batches
    for x, y in batches:
        assert x.shape == y.shape == (batch_size, num_steps)
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(num_steps))


@both
@given(**sizes)
def test_no_token_is_used_twice_in_an_epoch(name: str, batch_size: int, num_steps: int, extra: int, seed: int) -> None:
    batches = epoch(name, fewest(name, batch_size, num_steps) + extra, batch_size, num_steps, seed)
    used = torch.cat([x.flatten() for x, _ in batches])
    assert len(used.unique()) == len(used)


@both
@given(**sizes)
def test_an_epoch_has_as_many_minibatches_as_fit_after_the_offset(
    name: str, batch_size: int, num_steps: int, extra: int, seed: int
) -> None:
    num_tokens = fewest(name, batch_size, num_steps) + extra
    batches = epoch(name, num_tokens, batch_size, num_steps, seed)
    left = num_tokens - offset_of(name, batches, num_steps) - 1
    in_order = (left // batch_size) // num_steps if name == "sequential" else (left // num_steps) // batch_size
    assert len(batches) == in_order


@given(**sizes)
def test_sequential_rows_continue_from_minibatch_to_minibatch(
    batch_size: int, num_steps: int, extra: int, seed: int
) -> None:
    batches = epoch("sequential", fewest("sequential", batch_size, num_steps) + extra, batch_size, num_steps, seed)
    for (_, before), (x, _) in pairwise(batches):
        assert torch.equal(x[:, 0], before[:, -1])


@given(**sizes)
def test_sequential_rows_lie_side_by_side(batch_size: int, num_steps: int, extra: int, seed: int) -> None:
    num_tokens = fewest("sequential", batch_size, num_steps) + extra
    x, _ = epoch("sequential", num_tokens, batch_size, num_steps, seed)[0]
    width = (num_tokens - int(x[0, 0]) - 1) // batch_size
    assert (x[1:, 0] - x[:-1, 0]).tolist() == [width] * (batch_size - 1)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize(("name", "beyond"), [("random", 0), ("sequential", 1)])
def test_every_offset_of_the_range_occurs_and_no_other(name: str, beyond: int, num_steps: int) -> None:
    """0..num_steps-1 in the random partition, 0..num_steps, inclusive, in the sequential one."""
    epochs = (epoch(name, 60, 3, num_steps, seed) for seed in range(300))
    firsts = (
        {min(int(x.min()) for x, _ in batches) for batches in epochs}
        if name == "sequential"
        else {offset_of(name, batches, num_steps) for batches in epochs}
    )
    assert firsts == set(range(num_steps + beyond))


@given(**sizes)
def test_random_subsequences_share_one_offset_and_come_once_each(
    batch_size: int, num_steps: int, extra: int, seed: int
) -> None:
    num_tokens = fewest("random", batch_size, num_steps) + extra
    batches = epoch("random", num_tokens, batch_size, num_steps, seed)
    starts = torch.cat([x[:, 0] for x, _ in batches])
    offset = int(starts[0]) % num_steps
    there = set(range(offset, num_tokens - num_steps, num_steps))
    assert len(starts.unique()) == len(starts)
    assert set(starts.tolist()) <= there
    assert len(there) - len(starts) < batch_size  # what does not fill a minibatch, no more


@given(**sizes)
def test_sequential_leaves_out_less_than_a_minibatch_and_a_row(
    batch_size: int, num_steps: int, extra: int, seed: int
) -> None:
    num_tokens = fewest("sequential", batch_size, num_steps) + extra
    batches = epoch("sequential", num_tokens, batch_size, num_steps, seed)
    used = sum(x.numel() for x, _ in batches)
    left = num_tokens - int(batches[0][0][0, 0]) - 1 - used
    assert 0 <= left < batch_size * num_steps
    assert max(int(y.max()) for _, y in batches) < num_tokens


@both
@given(batch_size=st.integers(1, 5), num_steps=st.integers(1, 6))
def test_fewest_tokens_is_the_exact_limit(name: str, batch_size: int, num_steps: int) -> None:
    limit = fewest(name, batch_size, num_steps)
    assert all(epoch(name, limit, batch_size, num_steps, seed) for seed in range(60))
    assert not all(epoch(name, limit - 1, batch_size, num_steps, seed) for seed in range(60))


@both
@pytest.mark.parametrize("num_tokens", [0, 1, 2])
def test_a_text_too_short_gives_no_minibatch(name: str, num_tokens: int) -> None:
    assert epoch(name, num_tokens, 3, 4, 0) == []


@both
def test_leftovers_are_dropped(name: str) -> None:
    batches = epoch(name, 100, 4, 5, 0)
    assert sum(x.numel() for x, _ in batches) == 80


def test_random_subsequences_come_in_random_order() -> None:
    starts = torch.cat([x[:, 0] for x, _ in epoch("random", 400, 4, 5, 0)])
    assert not torch.equal(starts, starts.sort().values)
    assert len((starts % 5).unique()) == 1


@both
def test_the_seed_decides_the_epoch(name: str) -> None:
    first, again, other = (epoch(name, 200, 3, 5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert not torch.equal(first[0][0], other[0][0])


@both
def test_an_epoch_draws_anew_from_the_same_generator(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = {offset_of(name, list(PARTITIONS[name](torch.arange(60), 3, 5, generator)), 5) for _ in range(50)}
    assert len(offsets) > 1


@both
def test_ids_keep_their_type(name: str) -> None:
    ids = torch.arange(60, dtype=torch.int32)
    x, y = PARTITIONS[name](ids, 3, 5, torch.Generator().manual_seed(0))[0]
    assert x.dtype == y.dtype == torch.int32


@both
def test_a_minibatch_asked_for_alone_is_the_one_that_comes_in_turn(name: str) -> None:
    """A resumed training asks for those that are left, without making those before."""
    batches = PARTITIONS[name](torch.arange(200), 3, 5, torch.Generator().manual_seed(0))
    in_turn = list(batches)
    assert len(in_turn) == len(batches) > 3
    assert torch.equal(batches[3][0], in_turn[3][0])
    assert torch.equal(batches[3][1], in_turn[3][1])
