"""Who runs when, what is kept, and what an interrupt leaves; the clock is the test's."""

from __future__ import annotations

import gc

import pytest

from benchmarks.timing.interleaving import Floors, Taken, interleave, measure_overhead, time_block


class Machine:
    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[str] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def call(self, name: str, ns: int):  # type: ignore[no-untyped-def]
        def run() -> None:
            self.now_ns += ns
            self.log.append(name)

        return run


def floors(**changes: float) -> Floors:
    wanted = {"at_least_s": 1, "at_least": 1, "warm_up_s": 0.005, "warm_up": 5, "block_s": 0.002}
    return Floors(**{**wanted, **changes})  # type: ignore[arg-type]


def test_blocks_alternate_and_turn_round() -> None:
    machine = Machine()
    calls = {name: machine.call(name, 1_000_000) for name in ("a", "b")}
    taken = interleave(calls, floors(at_least_s=0.01), clock_ns=machine.clock_ns)
    assert machine.log[:10] == ["a"] * 5 + ["b"] * 5  # the warm-up
    # A block is one call that is not counted and two that are; the order reverses every round.
    assert machine.log[10:22] == ["a"] * 3 + ["b"] * 6 + ["a"] * 3
    assert taken.round_lengths("a") == taken.round_lengths("b") == (2,) * 5
    assert taken.warm_up["a"] == (5, 0.005)


def test_warm_up_holds_both_floors() -> None:
    machine = Machine()
    taken = interleave(
        {"a": machine.call("a", 1000)}, floors(warm_up=7, warm_up_s=1e-6), clock_ns=machine.clock_ns
    )
    assert taken.warm_up["a"][0] == 7
    taken = interleave(
        {"a": machine.call("a", 1000)}, floors(warm_up=0, warm_up_s=1e-4), clock_ns=machine.clock_ns
    )
    assert taken.warm_up["a"][0] == 100


def test_a_second_call_continues_as_another_opening() -> None:
    machine, taken = Machine(), Taken()
    for ns in (1_000_000, 3_000_000):
        calls = {name: machine.call(name, ns) for name in ("a", "b")}
        interleave(calls, floors(at_least_s=0.012), taken=taken, clock_ns=machine.clock_ns)
    assert taken.opening_rounds == (6, 4)
    assert list(taken.times_ms("b")) == [1.0] * 12 + [3.0] * 4


def test_an_interrupt_leaves_whole_rounds() -> None:
    machine, taken = Machine(), Taken()
    steady = machine.call("a", 1_000_000)

    def interrupted() -> None:
        machine.now_ns += 1_000_000
        machine.log.append("b")
        if len(machine.log) > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave(
            {"a": steady, "b": interrupted}, floors(), taken=taken, clock_ns=machine.clock_ns
        )
    assert taken.round_lengths("a") == taken.round_lengths("b")
    assert len(taken.times_ms("a")) == len(taken.times_ms("b")) > 0


def test_progress_grows_to_one() -> None:
    machine, heard = Machine(), []
    interleave(
        {"a": machine.call("a", 1_000_000)},
        floors(at_least_s=0.02),
        clock_ns=machine.clock_ns,
        progress=heard.append,
    )
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_no_garbage_collection_inside_a_block() -> None:
    inside = []
    assert gc.isenabled()
    time_block(lambda: inside.append(gc.isenabled()), 3)
    assert inside == [False] * 3
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        time_block(lambda: 1 // 0, 1)
    assert gc.isenabled()


def test_times_are_those_of_the_calls() -> None:
    machine = Machine()
    assert list(time_block(machine.call("a", 7), 4, machine.clock_ns)) == [7] * 4


def test_overhead_by_a_clock_that_costs() -> None:
    """Two readings of 40 ns each per timed call, one of them inside what is measured."""

    class Costly(Machine):
        def clock_ns(self) -> int:
            self.now_ns += 40
            return self.now_ns

    overhead = measure_overhead(Costly().clock_ns).overhead
    assert overhead is not None
    # Both loops are enclosed in one more reading.
    assert overhead.loop_us == pytest.approx(0.080, abs=0.001)
    assert overhead.reported_us == 0.040
    assert Taken().overhead is None
