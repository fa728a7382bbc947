"""``compress-deploy``: one verb per thing a user does, each a file in ``commands``.

A verb imports what it needs when it runs, so that help answers at once. Results go to standard
output, everything about the way there to standard error. Exit status: 0 done, 1 something that the
user can fix or a goal that was missed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from deploy.errors import CompressDeployError
from toolchain.commands import device, recipe
from toolchain.commands.ablate import ablate
from toolchain.commands.analyze import analyze
from toolchain.commands.bench import bench
from toolchain.commands.build import build
from toolchain.commands.compare import compare
from toolchain.commands.explain import explain
from toolchain.commands.export import export
from toolchain.commands.lint import lint
from toolchain.commands.listing import list_names
from toolchain.commands.plan import plan
from toolchain.commands.report import report
from toolchain.commands.results import results
from toolchain.commands.run import run
from toolchain.commands.verify import verify
from toolchain.commands.version import version


def _examples(*lines: str, then: str = "") -> str:
    """What stands below a verb's help; lines as they are."""
    shown = "".join(f"\n  compress-deploy {line}" for line in lines)
    return f"Examples:\n\n\b{shown}" + (f"\n\n{then}" if then else "")


EXAMPLES = _examples(
    "plan recipe.yaml",
    "run recipe.yaml --set data.root=photos --set stages.pqk-prune.bits=4",
    "verify runs/flowers-1a2b3c4d --data recipe.yaml",
    "export runs/flowers-1a2b3c4d --target tensorrt",
    "bench runs/flowers-1a2b3c4d",
    "report runs records --out page.html",
)


class _Verbs(typer.core.TyperGroup):
    """Turns what a user can fix into one line and a status; a bug keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except CompressDeployError as error:
            print(f"compress-deploy: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in ("run", "ablate", "analyze")
            end = " to resume" if resumes else ""
            print(f"compress-deploy: interrupted; run the same command again{end}", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="compress-deploy",
    cls=_Verbs,
    help="Take a trained network to a slim, quantized, verified and measured student.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)
app.command(
    "run",
    epilog=_examples(
        "run recipe.yaml",
        "run recipe.yaml --set seed=1 --set goals.macs=0.4 --out runs",
        then="Running the same command again resumes where it stopped.",
    ),
)(run)
app.command(
    "ablate",
    short_help="Compare ways of teaching at equal budget, seed by seed.",
    epilog=_examples(
        "ablate recipe.yaml --controllers dean,fixed,none --seeds 5",
        "ablate recipe.yaml --variants losses.yaml --baseline none --jobs 8 --table results.md",
    ),
)(ablate)
app.command(
    "analyze",
    short_help="Show, layer by layer, where the teacher helps and what sparsity costs.",
    epilog=_examples(
        "analyze recipe.yaml", "analyze recipe.yaml --epochs 5 --every 200 --spots 'layer*'"
    ),
)(analyze)
app.command("plan", epilog=_examples("plan recipe.yaml --set goals.macs=0.3"))(plan)
app.command(
    "export",
    short_help="Write a run's student as ONNX graphs for other targets.",
    epilog=_examples(
        "export runs/flowers-1a2b3c4d --target tensorrt,tensorrt-fp16",
        "export runs/flowers-1a2b3c4d --keep-float first --keep-float 'layer3.*' --out trial",
    ),
)(export)
app.command(
    "build",
    short_help="Build a TensorRT engine of a bundle's model.",
    epilog=_examples(
        "build runs/flowers-1a2b3c4d --max-batch 16",
        "build runs/flowers-1a2b3c4d --target teacher",
        "build runs/flowers-1a2b3c4d --device orin",
    ),
)(build)
app.command(
    "lint",
    short_help="Find what a target refuses, changes or does not fuse.",
    epilog=_examples(
        "lint model.onnx", "lint model.onnx --target ort-cpu", "lint --explain OP-CUSTOM"
    ),
)(lint)
app.command(
    "verify",
    epilog=_examples(
        "verify runs/flowers-1a2b3c4d --data recipe.yaml",
        "verify runs/flowers-1a2b3c4d --target ort-cpu,tensorrt --batch 1,32",
    ),
)(verify)
app.command(
    "explain",
    short_help="Say why a model is not faster, and what to try next.",
    epilog=_examples("explain runs/flowers-1a2b3c4d --threads 2 --all"),
)(explain)
app.command(
    "bench",
    short_help="Measure teacher and student in turns, and write a record.",
    epilog=_examples(
        "bench runs/flowers-1a2b3c4d --profile quick",
        "bench runs/flowers-1a2b3c4d --batch 1,8 --device orin,nano --power",
        "bench runs/flowers-1a2b3c4d --scenario server --bound-ms 15",
    ),
)(bench)
app.command(
    "compare",
    epilog=_examples(
        "compare before.json after.json", "compare one.json two.json --allow-different threads"
    ),
)(compare)
app.add_typer(recipe.app, name="recipe")
app.add_typer(device.app, name="device")
app.command("list", epilog=_examples("list losses", "list spots recipe.yaml"))(list_names)
app.command("results")(results)
app.command("report", epilog=_examples("report runs records --out page.html"))(report)
app.command("version")(version)


def main() -> None:
    """Entry point of the console script; ends the process with the exit status."""
    app()
