"""Where something was measured, as names and values a reader can take in."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from benchmarks.page import numbers
from benchmarks.page.blocks import Block, Facts, Lines

_APART = ("versions", "missing")
_MOST = 24  # items of a list that are shown
_UNITS = {"bytes": "B", "ms": "ms", "us": "µs", "ns": "ns", "s": "s", "mhz": "MHz", "hz": "Hz",
          "c": "°C", "w": "W", "j": "J", "v": "V", "percent": "%"}  # fmt: skip
_WORDS = {
    "top1": "top-1",
    "macs": "MACs",
    "cpu": "CPU",
    "gpu": "GPU",
    "l4t": "L4T",
    "cuda": "CUDA",
    "os": "OS",
    "n": "n",
    "id": "ID",
}


def environment_blocks(environment: Mapping[str, Any], versions: Mapping[str, Any]) -> list[Block]:
    """The machine, the versions on it, and what nobody could find out, with the reason."""
    blocks: list[Block] = []
    machine = [pair for key, value in environment.items() if key not in _APART
               for pair in flat(key, value)]  # fmt: skip
    if machine:
        blocks.append(Facts(machine))
    known = (
        dict(environment.get("versions") or {}) if _is_mapping(environment.get("versions")) else {}
    )
    known.update(versions)
    shown = [(name, str(version)) for name, version in known.items() if version is not None]
    if shown:
        blocks.append(Facts(shown))
    missing = environment.get("missing")
    if isinstance(missing, dict) and missing:
        lines = [
            f"{words(name.replace('versions.', ''))}: not known: {reason}"
            for name, reason in missing.items()
        ]
        blocks.append(Lines(lines))
    return blocks


def flat(key: str, value: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (name, value) pairs; what is null or empty is left out."""
    name = f"{before} {words(key)}".strip()
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from flat(str(inner), item, name)
        return
    shown = _value(str(key), value)
    if shown:
        yield name, shown


def words(key: str) -> str:
    """A key as words, its unit left to the value.

    >>> words("cpu_model"), words("strength.kl"), words("memory_bytes"), words("images_per_s")
    ('CPU model', 'strength, kl', 'memory', 'images per s')
    """
    name, underscore, unit = key.rpartition("_")
    plain = name if underscore and unit in _UNITS and not name.endswith("_per") else key
    parts = plain.replace(".", ", ").replace("_", " ").split(" ")
    return " ".join(_WORDS.get(part, part) for part in parts)


def _value(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        if len(value) > _MOST:
            return f"{numbers.grouped(len(value))} values"
        return ", ".join(filter(None, (_value(key, item) for item in value)))
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {shown}" for name, shown in flat("", value))
    if isinstance(value, (int, float)):
        return _quantity(value, key.rpartition("_")[2] if "_" in key else "")
    return str(value)


def _quantity(value: float, suffix: str) -> str:
    if suffix == "bytes":
        return numbers.scaled(float(value), "B")
    whole = isinstance(value, int) or value.is_integer()
    shown = numbers.grouped(value) if whole else numbers.digits(value, 4)
    return f"{shown}{numbers.THIN}{_UNITS[suffix]}" if suffix in _UNITS else shown


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
