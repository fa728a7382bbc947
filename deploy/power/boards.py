"""Which rails of a board add up to what it takes, and which are part of another.

Adding a rail to one that feeds it counts its power twice, so every board has its own answer.  The
table is from NVIDIA's developer guides and public measurements; none of it was checked on hardware
here.  A board is known by its device-tree model, else by its module's part number, else by a set of
rails that only one answer fits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Sequence

from deploy.errors import DeviceError

UNCONNECTED = "NC"


@dataclass(frozen=True)
class Supply:
    """The power tree of a board: ``total`` is added up, ``beside`` also where it exists.

    ``parts`` lie behind a rail of the total and are never added.  ``scope`` says what the total
    includes.  ``chips`` names rails of chips without labels, by driver and address.
    """

    board: str
    model: str
    modules: tuple[str, ...]
    total: tuple[str, ...]
    scope: str
    parts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    chips: tuple[tuple[str, str], ...] = ()
    measurable: bool = True

    @property
    def rails(self) -> frozenset[str]:
        return frozenset((*self.total, *self.parts))


@dataclass(frozen=True)
class Total:
    """Rails whose sum is reported, what they include, and what a reader must know."""

    rails: tuple[str, ...]
    scope: str
    remarks: tuple[str, ...]
    board: str | None


_ONE_RAIL = "processor, graphics and accelerators share one rail: it is no 'GPU power'"
_MODULE = "the module, at its input; not the carrier board, nor the losses of its supply"

SUPPLIES = (
    Supply(
        "Jetson AGX Thor",
        r"\bthor\b",
        ("p3834",),
        ("VIN",),
        "the module and its carrier board, at their common input",
        parts=("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        chips=(("ina238@2-0044", "VIN"),),
        remarks=("whatever else the carrier feeds through its shunt is in the total",),
    ),
    Supply(
        "Jetson Orin Nano",
        r"orin nano\b",
        ("p3767-0003", "p3767-0004", "p3767-0005"),
        ("VDD_IN",),
        _MODULE,
        parts=("VDD_CPU_GPU_CV", "VDD_SOC"),
        remarks=(_ONE_RAIL,),
    ),
    Supply(
        "Jetson Orin NX",
        r"orin nx\b",
        ("p3767-0000", "p3767-0001"),
        ("VDD_IN",),
        _MODULE,
        parts=("VDD_CPU_GPU_CV", "VDD_SOC"),
        remarks=(_ONE_RAIL,),
    ),
    Supply(
        "Jetson AGX Orin",
        r"\bagx orin\b",
        ("p3701",),
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        "three rails behind the module's input: a lower bound, the input itself has no sensor",
        parts=("VDDQ_VDD2_1V8AO",),
        remarks=(
            "a lower bound of the input; one published calibration is DC input = 1.02 x sum + 3.1 W",
            "VDD_GPU_SOC includes the SoC: it is no 'GPU power'",
        ),
    ),
    Supply(
        "Jetson Xavier NX",
        r"xavier nx\b",
        ("p3668",),
        ("VDD_IN",),
        _MODULE,
        parts=("VDD_CPU_GPU_CV", "VDD_SOC"),
        remarks=(_ONE_RAIL,),
    ),
    Supply(
        "Jetson AGX Xavier",
        r"\bagx xavier\b|^jetson-agx$",
        ("p2888",),
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        "six rails behind the module's input: a lower bound, the input itself has no sensor",
        remarks=("a lower bound of the input",),
    ),
    Supply(
        "Jetson TX2",
        r"\btx2\b|^quill$",
        ("p3310", "p3489"),
        ("VDD_IN",),
        "the module, and its carrier board where VDD_MUX is measured",
        parts=("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI", "VDD_SYS_CPU", "VDD_SYS_DDR"),
        beside=("VDD_MUX",),
        remarks=("whether VDD_MUX lies before or beside VDD_IN depends on the carrier",),
    ),
    Supply(
        "Jetson Nano 2GB",
        r"\bnano 2gb\b",
        ("p3448-0003",),
        (),
        "nothing",
        measurable=False,
        remarks=("this board has no power sensor",),
    ),
    Supply(
        "Jetson Nano",
        r"\bjetson nano\b",
        ("p3448",),
        ("POM_5V_IN",),
        "the board, at its 5 V input",
        parts=("POM_5V_GPU", "POM_5V_CPU"),
    ),
)


def find_supply(model: str | None, compatible: Sequence[str] = ()) -> Supply | None:
    """The power tree of a board, by its model, else by the part numbers in ``compatible``."""
    for supply in SUPPLIES:
        if model and re.search(supply.model, model, re.IGNORECASE):
            return supply
    for supply in SUPPLIES:
        if any(part in name for name in compatible for part in supply.modules):
            return supply
    return None


def choose_total(
    present: Iterable[str],
    model: str | None = None,
    compatible: Sequence[str] = (),
    asked: Sequence[str] = (),
) -> Total:
    """Which of the rails that are ``present`` are the total of this board.

    ``asked`` names them explicitly, for boards that are not known.

    Raises:
        DeviceError: The board has no sensor, or its rails are not the known ones; names those that
            exist and says how to choose.
    """
    names = sorted({name for name in present if name != UNCONNECTED})
    where = model or "this board"
    exist = f"rails here: {', '.join(names) or 'none'}"
    how = "name the rails that add up to the total, e.g. --rails VDD_IN"
    if asked:
        missing = [rail for rail in asked if rail not in names]
        if missing:
            raise DeviceError(f"{where}: there is no rail {', '.join(missing)}; {exist}")
        supply = find_supply(model, compatible)
        return Total(
            tuple(dict.fromkeys(asked)),
            "the rails that were asked for",
            ("the rails of the total were chosen by hand", *_overlap(supply, asked)),
            supply.board if supply else None,
        )
    supply = find_supply(model, compatible)
    if supply is not None and not supply.measurable:
        raise DeviceError(f"{where}: it has no power sensor; measure without power")
    if supply is None:
        fitting = [s for s in SUPPLIES if s.measurable and s.rails <= set(names)]
        if len({(s.total, s.beside) for s in fitting}) != 1:
            raise DeviceError(f"{where}: it is not known which rail is its total; {exist}; {how}")
        return Total(
            fitting[0].total,
            fitting[0].scope,
            ("recognised by its rails alone", *fitting[0].remarks),
            None,
        )
    absent = [rail for rail in supply.total if rail not in names]
    if absent:
        raise DeviceError(
            f"{where}: the total of a {supply.board} is {' + '.join(supply.total)}, of which "
            f"{', '.join(absent)} is absent; {exist}; {how}"
        )
    rails = (*supply.total, *(rail for rail in supply.beside if rail in names))
    return Total(rails, supply.scope, supply.remarks, supply.board)


def _overlap(supply: Supply | None, asked: Sequence[str]) -> list[str]:
    """A word about rails that are chosen together with what feeds them."""
    if supply is None or not set(asked) & set(supply.total):
        return []
    twice = [rail for rail in asked if rail in supply.parts]
    return [f"{', '.join(twice)} is part of the others and counted twice"] if twice else []
