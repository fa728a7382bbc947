"""What the builder measured, kept in a file: the next build of a similar network takes a fraction."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.engines.bindings import Bindings
from deploy.engines.messages import listening
from deploy.engines.settings import BuildSettings
from deploy.engines.worker import Answer
from deploy.errors import ConfigError, StorageError


@dataclass(frozen=True)
class TimingCache:
    """A timing cache in a file.  It is of one TensorRT version and one GPU, as its default name is."""

    path: Path
    title: str

    @classmethod
    def of(
        cls, bindings: Bindings, settings: BuildSettings, driver: Answer | None, folder: Path
    ) -> TimingCache | None:
        """The cache that the settings ask for, by default one in ``folder``; ``None`` without.

        Raises:
            ConfigError: A file was given and this runtime measures nothing.
        """
        if not bindings.times_kernels:
            if settings.timing_cache is not None:
                raise ConfigError(
                    f"build: timing_cache is {settings.timing_cache} and {bindings.title} times "
                    "no kernels; leave it out"
                )
            return None
        if settings.timing_cache is not None:
            return cls(settings.timing_cache, bindings.title)
        return (
            cls(folder / _name(bindings, driver), bindings.title) if settings.keep_timing else None
        )

    def load_into(self, config: Any) -> None:
        """Hand over what is stored, or an empty cache.

        Raises:
            StorageError: The file cannot be read, or the builder refuses it.
        """
        try:
            stored = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StorageError(
                f"{self.path}: the timing cache cannot be read ({error.strerror}); give another"
            ) from error
        with listening() as messages:
            cache = config.create_timing_cache(stored)
            if cache is None or not config.set_timing_cache(cache, False):
                raise StorageError(
                    f"{self.path}: {self.title} refuses this timing cache ({messages.first_error}); "
                    "it is of another version or GPU, remove the file or give another"
                )

    def keep_from(self, config: Any) -> None:
        """Write what was measured, at once and whole.

        Raises:
            StorageError: It cannot be written.
        """
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(bytes(config.get_timing_cache().serialize()))
            scratch.replace(self.path)
        except OSError as error:
            raise StorageError(
                f"{self.path}: the timing cache cannot be written ({error.strerror}); give another"
            ) from error
        finally:
            if scratch.exists():
                scratch.unlink()


def _name(bindings: Bindings, driver: Answer | None) -> str:
    gpus = (driver or {}).get("gpus", [])
    gpu = f"{gpus[0]['name']}-{gpus[0]['compute_capability']}" if gpus else "unknown-gpu"
    kept = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in gpu)
    return f"timing-{bindings.version}-{kept}.cache"
