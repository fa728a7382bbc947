"""Checks of constructor arguments."""

from __future__ import annotations

import doctest

import pytest

from deploy.errors import ConfigError
from toolchain.models import arguments
from toolchain.models.arguments import call_form, whole, whole_list


def test_form_of_a_call_has_no_annotations() -> None:
    def build(a: int, *, b: str = "x", **rest: float) -> None: ...

    assert call_form("build", build) == "build(a, *, b='x', **rest)"
    assert call_form("dict", dict) == "dict(...)"


@pytest.mark.parametrize(("value", "at_least"), [(1, 1), (0, 0), (7, 3)])
def test_whole_numbers_pass(value: int, at_least: int) -> None:
    assert whole("n", value, at_least) == value


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_others_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="model.args.n: .* given; accepted: a whole number"):
        whole("n", value)


def test_lists() -> None:
    assert whole_list("n", [3, 1]) == (3, 1)
    assert whole_list("n", ()) == ()
    for values in (3, "31", [3, 0], {3}):
        with pytest.raises(ConfigError, match="model.args.n"):
            whole_list("n", values)
    with pytest.raises(ConfigError, match="accepted: 3 whole numbers"):
        whole_list("n", [1, 2], length=3)


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(arguments)
    assert attempted and not failed
