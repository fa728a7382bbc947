"""What a dean's options need before anything is built: samples that are held out, and a file of a dean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deploy.errors import ConfigError
from toolchain.dean.network import FILE, DeanNetwork


def require_all(options: Mapping[str, Any], samples: int) -> None:
    """Refuse a dean to load that is none, one to replay that is not named, and too few held-out samples.

    Raises:
        ConfigError: Says what is wrong with the file, or how many samples are needed.
    """
    require_replayed(options["frozen"], options["load"])
    if options["load"] is not None:
        with torch.random.fork_rng(devices=[]):  # this may be asked where nothing may be drawn
            DeanNetwork.load(Path(options["load"]))
    require_held_out(options, samples)


def require_replayed(frozen: bool, load: str | Path | None) -> None:
    """Refuse a frozen dean that no file is named of.

    Raises:
        ConfigError: It would have nothing to replay.
    """
    if frozen and load is None:
        raise ConfigError(
            "distil.controller_options.frozen: true without a dean to replay; accepted with load: a "
            f"path to the {FILE} of an earlier run; set load, or take the controller fixed"
        )


def require_held_out(options: Mapping[str, Any], samples: int) -> None:
    """Refuse a held-out part that has no batch of ``probe_size``; a frozen dean looks at none.

    Raises:
        ConfigError: Says how many samples are needed.
    """
    size = options["probe_size"]
    if samples < size and not options["frozen"]:
        raise ConfigError(
            f"distil.controller_options.held_out: {samples} samples for the dean; accepted are at least "
            f"{size}, a batch of probe_size {size}; hold out more, or probe less"
        )
