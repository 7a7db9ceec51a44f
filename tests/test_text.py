"""Untrusted text on one safe line, and durations."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprank.runtime.text import display_path, duration, first_line, printable


@given(st.text(alphabet=st.characters()))
def test_nothing_unsafe_is_left(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Grüße 日本.png", "Grüße 日本.png"),
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("holiday [/edited].jpg", "holiday [/edited].jpg"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_bytes_that_are_not_utf8_are_shown_not_dropped() -> None:
    assert display_path(b"caf\xe9.jpg") == r"caf\xe9.jpg"
    assert display_path(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (119.7, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (3930, "1 h 05 min"),
    ],
)
def test_times(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("\n  one\x1b\ntwo"), r"one\x1b", r"ValueError: one\x1b"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (RuntimeError("x" * 1000), "x" * 300, "RuntimeError: " + "x" * 300),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str, named: str) -> None:
    assert first_line(error) == line
    assert first_line(error, named=True) == named
