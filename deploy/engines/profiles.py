"""Which of an engine's optimisation profiles fits given shapes, and fits best."""

from __future__ import annotations

from typing import Any, Mapping, Tuple

from deploy.errors import DeviceError
from deploy.sessions.session import Port

Shapes = Mapping[str, Tuple[int, ...]]
Range = Tuple[Shapes, Shapes, Shapes]


def choose_profile(engine: Any, shapes: Shapes, model: str) -> int:
    """The profile that has ``shapes`` inside its limits and its optimum nearest to them.

    Raises:
        DeviceError: None has; says what the engine was built for.
    """
    ranges = [range_of(engine, index, shapes) for index in range(engine.num_optimization_profiles)]
    fitting = [
        (_distance(best, shapes), index)
        for index, (low, best, high) in enumerate(ranges)
        if all(
            least <= size <= most
            for name, shape in shapes.items()
            for least, size, most in zip(low[name], shape, high[name])
        )
    ]
    if not fitting:
        built = "; or ".join(f"{low} to {high}" for low, _, high in ranges)
        raise DeviceError(
            f"{model}: inputs of shape {dict(shapes)} are outside what the engine was built for: "
            f"{built}; build it with --min-batch and --max-batch that include them"
        )
    return min(fitting)[1]


def batch_for(engine: Any, port: Port, rows: int) -> int:
    """The largest batch of any profile that is not above ``rows``, or the least that there is.

    ``port`` is an input whose first size is the batch.
    """
    if port.shape[0] is not None:
        return port.shape[0]
    ranges = [
        range_of(engine, index, [port.name]) for index in range(engine.num_optimization_profiles)
    ]
    limits = [(low[port.name][0], high[port.name][0]) for low, _, high in ranges]
    fitting = [min(rows, most) for least, most in limits if least <= rows]
    return max(fitting) if fitting else min(least for least, _ in limits)


def range_of(engine: Any, index: int, names: Any) -> Range:
    """The least, best and greatest shapes of the named inputs in one profile."""
    limits: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
    for name in names:
        for limit, shape in zip(limits, engine.get_tensor_profile_shape(name, index)):
            limit[name] = tuple(int(size) for size in shape)
    return limits[0], limits[1], limits[2]


def _distance(best: Shapes, shapes: Shapes) -> int:
    return sum(abs(a - b) for name in shapes for a, b in zip(best[name], shapes[name]))
