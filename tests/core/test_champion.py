"""The rule that decides about the champion, the moves there have been, and the names of models."""

import math

import pytest

from rnnlm_core.champion import (
    FORCED,
    NOTICED,
    PROMOTED,
    ROLLED_BACK,
    Candidate,
    Move,
    Verdict,
    decide,
    holders,
    read_move,
    registered_name,
)


def candidate(
    valid: float | None, version: int = 1, corpus: str = "a", tokenizer: str = "char", split: str = "90/5/5"
) -> Candidate:
    return Candidate(version, valid, corpus * 64, tokenizer, split)


CHAMPION = candidate(6.9, version=3)


@pytest.mark.parametrize(
    ("one", "champion", "verdict"),
    [
        (candidate(6.5), CHAMPION, Verdict(True, "valid perplexity 6.50 is below 6.90 (version 3)")),
        (
            candidate(7.21),
            CHAMPION,
            Verdict(False, "valid perplexity 7.21 is not below champion's 6.90 (version 3)"),
        ),
        (candidate(6.9), CHAMPION, Verdict(False, "valid perplexity 6.90 is not below champion's 6.90 (version 3)")),
        # The figures of the reason are as different as the values are.
        (candidate(6.8996), CHAMPION, Verdict(True, "valid perplexity 6.8996 is below 6.9000 (version 3)")),
        (candidate(1234.5), None, Verdict(True, "the first with a validation perplexity (1,234.50)")),
        (candidate(None), None, Verdict(False, "no validation perplexity: no candidate")),
        (candidate(None), CHAMPION, Verdict(False, "no validation perplexity: no candidate")),
        (candidate(math.nan), None, Verdict(False, "valid perplexity nan is no figure to compare with")),
        (candidate(math.inf), CHAMPION, Verdict(False, "valid perplexity inf is no figure to compare with")),
        (candidate(-math.inf), CHAMPION, Verdict(False, "valid perplexity -inf is no figure to compare with")),
        (
            candidate(2.0, tokenizer="word", corpus="b"),
            CHAMPION,
            Verdict(False, "measured with another tokenizer (word) than champion's (char, version 3): not comparable"),
        ),
        (
            candidate(2.0, split="80/10/10", corpus="b"),
            CHAMPION,
            Verdict(False, "measured on another split (80/10/10) than champion's (90/5/5, version 3): not comparable"),
        ),
        (
            candidate(2.0, corpus="b"),
            CHAMPION,
            Verdict(
                False,
                "measured on another corpus (bbbbbbbbbbbb) than champion's (aaaaaaaaaaaa, version 3): not comparable",
            ),
        ),
        (
            candidate(2.0),
            candidate(None, version=2),
            Verdict(False, "champion (version 2) has no validation perplexity: not comparable"),
        ),
        (
            candidate(2.0),
            candidate(math.nan, version=2),
            Verdict(False, "champion (version 2) has valid perplexity nan: not comparable"),
        ),
    ],
)
def test_only_a_lower_finite_validation_perplexity_on_the_same_corpus_wins(
    one: Candidate, champion: Candidate | None, verdict: Verdict
) -> None:
    assert decide(one, champion) == verdict


def move(version: int, how: str = PROMOTED) -> Move:
    return Move(version, how, "2026-01-02T03:04:05Z", "because")


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([], []),
        ([move(1), move(3)], [1, 3]),
        ([move(1), move(3), move(1, ROLLED_BACK)], [1]),
        ([move(1), move(3), move(1, ROLLED_BACK), move(4)], [1, 4]),
        ([move(1), move(2), move(3), move(1, ROLLED_BACK)], [1]),  # version 2 had been deleted
        ([move(1), move(2), move(1, FORCED)], [1, 2, 1]),
        ([move(1), move(2), move(1, FORCED), move(2, ROLLED_BACK), move(1, ROLLED_BACK)], [1]),
        ([move(1), move(2), move(1, NOTICED)], [1]),
        ([move(1), move(5, NOTICED)], [1, 5]),
        ([move(1), move(1)], [1]),
    ],
)
def test_who_held_the_place_is_told_by_the_moves(moves: list[Move], expected: list[int]) -> None:
    assert holders(moves) == expected


@pytest.mark.parametrize("how", [PROMOTED, FORCED, ROLLED_BACK, NOTICED])
def test_a_move_is_read_as_it_was_written(how: str) -> None:
    written = Move(12, how, "2026-01-02T03:04:05Z", "valid perplexity 6.90 is below 7.21 (version 3): fine")
    assert read_move(str(written)) == written


def test_what_is_no_move_is_none_and_a_reason_stays_on_its_line() -> None:
    assert read_move("somebody's own note") is None
    assert "\n" not in str(Move(1, PROMOTED, "2026-01-02T03:04:05Z", "two\nlines"))


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("python-docs", "rnnlm-python-docs"),
        ("book.txt", "rnnlm-book.txt"),
        ("/somewhere/My Text.txt", "rnnlm-my-text.txt"),
        ("https://user:secret@example.org/texts/corpus.txt?token=secret", "rnnlm-corpus"),
        ("https://user:secret@example.org", "rnnlm-example.org"),
        ("Café Été.txt", "rnnlm-cafe-ete.txt"),
        ("红楼梦.txt", "rnnlm-txt-91e7823d"),
        ("a:b@c", "rnnlm-a-b-c"),
        ("..", "rnnlm-5ec1f7e7"),
        ("", "rnnlm-text"),
    ],
)
def test_a_model_is_called_by_its_corpus(corpus: str, name: str) -> None:
    assert registered_name(corpus) == name


def test_names_that_a_slug_cannot_tell_apart_have_a_digest() -> None:
    assert registered_name("红楼梦.txt") != registered_name("水浒传.txt")
