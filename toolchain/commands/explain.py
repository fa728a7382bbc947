"""``compress-deploy explain``: why is it not faster?"""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.commands.options import BundlePath


def explain(
    bundle: BundlePath,
    target: Annotated[str, typer.Option(help="Which of its models to explain.")] = "ort-cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Inputs of one call.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0, help="Least time for each model; more is less noise.")
    ] = 1.0,
    everything: Annotated[bool, typer.Option("--all", help="Every kernel, not only 15.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Say why a bundle's model is not faster, and what to try next.

    Times every kernel that ONNX Runtime executes, beside the teacher's, and holds it against what this
    machine does at best, measured in the same run: bytes moved, multiplications, what a kernel costs that
    does nothing. Each kernel gets the first cause that these numbers prove.
    """
    from deploy.bundle import Bundle

    opened = Bundle.open(bundle)
    path = opened.model_path(target)

    import numpy as np
    from rich.console import Console

    from deploy.errors import ConfigError
    from exporters.explain import explaining
    from exporters.explain.machine_limits import measure_machine
    from toolchain.proof import explaining as showing
    from toolchain.proof.steps import counted
    from toolchain.training.progress import Progress

    if target != "ort-cpu":
        raise ConfigError(
            f"--target: {target} is given, and what ONNX Runtime does with that graph on a processor says "
            "nothing about TensorRT; accepted is ort-cpu. What an engine's layers compute with is in "
            "the engine's .json file, written by: compress-deploy build"
        )
    images_u8, _ = opened.samples()
    feeds = {
        opened.manifest["input"]["name"]: opened.preprocess(
            np.resize(images_u8, (batch, *images_u8.shape[1:]))
        )
    }
    with counted(Progress(), "timing") as step:
        machine = measure_machine(threads)
        student = explaining.explain(
            path, feeds, threads=threads, machine=machine, at_least_s=seconds, progress=step
        )
        teacher = None
        if "teacher.onnx" in opened.manifest["files"]:
            teacher = explaining.explain(
                opened.folder / "teacher.onnx",
                feeds,
                threads=threads,
                machine=machine,
                at_least_s=seconds,
                progress=step,
            )
    if as_json:
        print(showing.as_json(opened.name, target, student, teacher))
    else:
        most = len(student.kernels) if everything else showing.SHOWN
        showing.show(opened.name, target, student, teacher, Console(), most)
