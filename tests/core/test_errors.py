import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core import errors
from rnnlm_core.errors import ConfigError, DataError, RnnlmError, by_name, one_line, suggestion, unknown_name


def _tree(cls: type[RnnlmError]) -> list[type[RnnlmError]]:
    return [
        cls,
        *(found for child in cls.__subclasses__() if child.__module__ == errors.__name__ for found in _tree(child)),
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UsageError", 2),
        ("ConfigError", 2),
        ("DataError", 3),
        ("IntegrityError", 4),
        ("ResourceError", 5),
        ("NetworkError", 6),
        ("PartialError", 7),
        ("Stopped", 130),
    ],
)
def test_each_kind_has_its_exit_code(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


@pytest.mark.parametrize("cls", _tree(RnnlmError))
def test_an_error_is_rebuilt_from_its_name_and_arguments(cls: type[RnnlmError]) -> None:
    error = cls("one", "two", "three")
    again = by_name(cls.__name__)(*error.args)
    assert type(again) is cls
    assert (str(again), again.exit_code) == (str(error), error.exit_code)


@pytest.mark.parametrize("cls", _tree(RnnlmError))
def test_an_error_survives_pickling(cls: type[RnnlmError]) -> None:
    error = cls("one", "two", "three")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), again.args) == (cls, error.args)


def test_a_name_outside_the_tree_becomes_the_root() -> None:
    assert by_name("KeyError") is RnnlmError


def test_every_error_is_a_value_error() -> None:
    assert all(issubclass(cls, ValueError) for cls in _tree(RnnlmError))


def test_a_message_is_what_value_remedy() -> None:
    assert str(DataError("too short", 3, "give more")) == "too short: 3: give more"


def test_empty_parts_leave_no_colons() -> None:
    assert str(DataError("too short")) == "too short"
    assert str(DataError("too short", "", "give more")) == "too short: give more"


def test_zero_is_a_value() -> None:
    assert str(DataError("too short", 0, "give more")) == "too short: 0: give more"


def test_a_config_error_has_one_line_per_mistake() -> None:
    error = ConfigError("first", "second", "third", "fourth")
    assert error.lines == ["first", "second", "third", "fourth"]
    assert str(error) == "first\nsecond\nthird\nfourth"


def test_a_value_cannot_forge_a_log_line() -> None:
    error = DataError("no such file", "a\nerror: b\x1b[31m\r", "look again")
    assert error.lines == ["no such file: a\\nerror: b\\x1b[31m\\r: look again"]


def test_text_in_any_script_is_shown_as_it_is() -> None:
    assert one_line("时间机器 и Ω") == "时间机器 и Ω"


def test_long_values_are_cut() -> None:
    assert one_line("x" * 500) == "x" * 500
    assert one_line("x" * 501) == "x" * 500 + "…"


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(), max_size=700))
def test_one_line_is_printable_and_bounded(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= 501


def test_an_unknown_name_lists_the_known_ones_and_suggests_the_closest() -> None:
    error = unknown_name("corpus", "time-machin", ["time-machine", "shakespeare"])
    assert str(error) == "unknown corpus: time-machin: did you mean time-machine? (known: time-machine, shakespeare)"
    assert error.exit_code == 2


def test_capitals_are_no_reason_to_know_nothing() -> None:
    assert suggestion("RNN", ["gru", "rnn"]) == "did you mean rnn? (known: gru, rnn)"
    assert suggestion("q_star", ["Q_Star", "q_stir"]).startswith("did you mean Q_Star?")


def test_nothing_close_suggests_nothing() -> None:
    assert suggestion("xyzzy", ["gru", "lstm"]) == "known: gru, lstm"
