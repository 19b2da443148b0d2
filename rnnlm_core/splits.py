"""How a text in one file is divided: contiguous parts, in order, that do not overlap."""


def split_lengths(size: int, shares: tuple[int, int, int] | None) -> dict[str, int]:
    """Return how much of `size` each split gets; rounding goes to the last split that has a share."""
    assert shares is not None, "a corpus in one file is divided by shares"
    train, valid, test = shares
    total = train + valid + test
    first = size * train // total
    second = size * (train + valid) // total - first
    if not test:
        second = size - first if valid else 0
        first = size - second
    return {"train": first, "valid": second, "test": size - first - second}
