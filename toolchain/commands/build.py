"""``compress-deploy build``: a bundle's model as a TensorRT engine, here or on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import BundlePath


def build(
    bundle: BundlePath,
    target: Annotated[
        str,
        typer.Option(help="Which of the bundle's models: tensorrt, tensorrt-fp16, or teacher."),
    ] = "tensorrt",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="tensorrt or rtx (TensorRT-RTX); the first that is installed.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="What the engine must be proved to compute with: int8, float16 or float32. The "
            "teacher has no integers to prove."
        ),
    ] = "int8",
    min_batch: Annotated[
        int | None, typer.Option(help="Least batch of a dynamic model.", show_default="1")
    ] = None,
    opt_batch: Annotated[
        int | None,
        typer.Option(help="The batch that kernels are chosen for.", show_default="the least"),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Greatest batch of a dynamic model.", show_default="8")
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(help="Most scratch memory, in MiB.", show_default="the runtime's own limit"),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            help="0 to 5: how long to search for kernels.", show_default="the runtime's own"
        ),
    ] = None,
    typing: Annotated[
        str,
        typer.Option(help="auto, strong (types as the graph says), weak (the builder chooses)."),
    ] = "auto",
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measured kernels, read and written back.",
            show_default="in the user's cache folder, where the runtime measures",
        ),
    ] = None,
    dla: Annotated[
        int | None,
        typer.Option(help="Number of the DLA core; what it cannot run goes to the GPU."),
    ] = None,
    dla_only: Annotated[
        bool, typer.Option("--dla-only", help="Nothing may fall back to the GPU.")
    ] = False,
    no_tf32: Annotated[
        bool, typer.Option("--no-tf32", help="Full float32 where the graph says float32.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Run on later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(
            help="ampere_plus or same_compute_capability: run on these GPUs too.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="SM",
            help="Compute capability such as 8.6 that RTX compiles for; may be given several times.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,URL,...",
            help="Build there: names of `device add`, or ssh://user@host.",
            show_default="this machine",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Build a TensorRT engine from a bundle's model and store it in the bundle.

    Build on the machine where the engine will run: a plan is tied to its GPU, to the version of
    TensorRT and to the platform, all of which its side file says. TensorRT needs the GPU to build;
    TensorRT-RTX does not. Prints the precision that layers really compute with, and fails when int8
    was asked for and no convolution is int8.
    """
    from deploy.engines.settings import Batches, BuildSettings
    from deploy.errors import ConfigError

    if dla_only and dla is None:
        raise ConfigError("--dla-only: no DLA core was chosen; give --dla 0 too")
    profiles = None
    if (min_batch, opt_batch, max_batch) != (None, None, None):
        profiles = (Batches.of(min_batch, opt_batch, max_batch),)
    settings = BuildSettings(
        runtime=runtime,
        precision=precision,
        typing=typing,
        workspace_mb=workspace_mb,
        profiles=profiles,
        optimization_level=optimization_level,
        tf32=not no_tf32,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_core=dla,
        gpu_fallback=not dla_only,
        compute_capabilities=tuple(gpus or ()),
    )

    if device is not None:
        from toolchain.shipping.device_builds import build_on

        names = [name.strip() for name in device.split(",") if name.strip()]
        raise typer.Exit(build_on(names, bundle, target, settings, as_json=as_json))

    from toolchain.shipping.building import build_into

    raise typer.Exit(build_into(bundle, target, settings, as_json=as_json))
