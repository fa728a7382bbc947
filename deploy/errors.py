"""Every error a user can cause or fix.

* CompressDeployError
  - ConfigError         a value in the recipe or on the command line is wrong   (also a ValueError)
  - DataError           samples or labels cannot be used                        (also a ValueError)
  - CheckpointError     weights do not fit the network, or cannot be trusted    (also a ValueError)
  - StructureError      the network cannot be cut or traced as asked            (also a ValueError)
  - TrainingError       training cannot go on, e.g. the loss is not finite
  - StorageError        a file or folder cannot be read or written              (also an OSError)
  - MissingDependency   an optional package is not installed                    (also an ImportError)
  - DeviceError         a device, runtime or sensor could not do what was asked (also an OSError)
  - VerificationError   an export does not match its source

A message is one line with four parts: where, what was given, what is accepted, what to do. Anything
else that escapes is a bug in this project: let it crash with its traceback.
"""

from __future__ import annotations


class CompressDeployError(Exception):
    """Base of every error raised on purpose; the command line prints it without a traceback."""


class ConfigError(CompressDeployError, ValueError):
    """A value in the recipe or on the command line is outside what is accepted."""


class DataError(CompressDeployError, ValueError):
    """Samples or labels are missing, corrupt, or do not match the model."""


class CheckpointError(CompressDeployError, ValueError):
    """Weights do not fit the network, or the file needs code execution to be read."""


class StructureError(CompressDeployError, ValueError):
    """The network cannot be traced, or cannot be cut as asked."""


class TrainingError(CompressDeployError):
    """Training cannot go on; the last good checkpoint is kept."""


class StorageError(CompressDeployError, OSError):
    """A file or folder cannot be read or written, e.g. the disk is full."""


class MissingDependency(CompressDeployError, ImportError):
    """An optional package is needed here and is not importable."""


class DeviceError(CompressDeployError, OSError):
    """A device, a runtime or a sensor could not do what was asked."""


class VerificationError(CompressDeployError):
    """An exported model disagrees with the model it was exported from."""
