"""``compress-deploy version``: what is installed."""

from __future__ import annotations


def version() -> None:
    """Print the versions of this program and its packages."""
    from toolchain.runs.artifacts import installed_versions

    for name, number in installed_versions().items():
        print(f"{name} {number}")
