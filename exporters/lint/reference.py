"""``docs/lint.md``: every rule in full, written from the registry.

python -m exporters.lint.reference > docs/lint.md
"""

from __future__ import annotations

from exporters.lint.registry import Rule, rules

_HEAD = """# Rules of `compress-deploy lint`

Written by `python -m exporters.lint.reference > docs/lint.md`; `compress-deploy lint --explain RULE`
prints one.

An *error* is a graph that the target refuses or computes otherwise than the graph says, and makes the
exit status 1. A *warning* works, slower or otherwise than a reader of the graph would think. A *note*
is worth knowing. A level may differ with the case; the one given here is the usual. *Refused* means
that NVIDIA's importer, that of TensorRT-RTX 1.7.1, does not take such a graph: linter and importer are
compared on every graph of the tests' corpus.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(rule) for rule in rules().values())])


def _section(rule: Rule) -> str:
    levels = []
    for target, name in (("tensorrt", "TensorRT"), ("ort-cpu", "ONNX Runtime")):
        level = rule.levels.get(target)
        if level is not None:
            refused = ", refused" if rule.refused and target == "tensorrt" else ""
            levels.append(f"{name}: {level}{refused}")
    title = rule.title[0].upper() + rule.title[1:]
    return (
        f"## {rule.id}\n\n{title}. *{'; '.join(levels)}.*\n\n{rule.explanation}\n\n"
        f"What to do: {rule.remedy}.\n"
    )


if __name__ == "__main__":
    print(reference(), end="")
