"""accelerate's object for training in this one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.errors import TrainingError
from toolchain.training.precision import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(precision: Precision) -> Accelerator:
    """One that moves nothing and casts nothing: placing and autocast are the precision's own.

    accelerate's autocast empties and refills the process's environment each time it is entered. Its
    state is shared by the whole process, so training on another kind of device has to make it forget
    the first.

    Raises:
        TrainingError: Several processes were started.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = precision.device_type == "cpu"
    known = AcceleratorState._shared_state
    if known and (known["_cpu"], known["_mixed_precision"]) != (cpu, "no"):
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"training: started as {accelerator.num_processes} processes; only 1 is supported; "
            "start compress-deploy without a launcher"
        )
    return accelerator
