"""The page about the rules is the registry's."""

from __future__ import annotations

from pathlib import Path

from exporters.lint.reference import reference
from exporters.lint.registry import rules

PAGE = Path(__file__).parents[3] / "docs" / "lint.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "python -m exporters.lint.reference > docs/lint.md"


def test_every_rule_has_a_section() -> None:
    headings = [line[3:] for line in reference().splitlines() if line.startswith("## ")]
    assert headings == list(rules())


def test_sentences_end_once() -> None:
    for rule in rules().values():
        assert rule.explanation.endswith("."), rule.id
        assert not rule.remedy.endswith("."), rule.id
        assert not rule.title.endswith("."), rule.id
