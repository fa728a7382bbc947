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

EXAMPLES = """Examples:

\b
  compress-deploy plan recipe.yaml
  compress-deploy run recipe.yaml --out runs
  compress-deploy run recipe.yaml --set data.root=cifar10 --set stages.pqk-prune.bits=4
  compress-deploy recipe show recipe.yaml --resolved
"""


class _Verbs(typer.core.TyperGroup):
    """Turns what a user can fix into one line and a status; a bug keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except CompressDeployError as error:
            print(f"compress-deploy: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print(
                "compress-deploy: interrupted; run the same command again to resume",
                file=sys.stderr,
            )
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
)
app.command("run", epilog="Running the same command again resumes where it stopped.")(run)
app.command("plan")(plan)
app.command("export")(export)
app.command("build")(build)
app.command("lint")(lint)
app.command("verify")(verify)
app.command("explain")(explain)
app.command("bench")(bench)
app.command("compare")(compare)
app.add_typer(recipe.app, name="recipe")
app.add_typer(device.app, name="device")
app.command("list")(list_names)
app.command("results")(results)
app.command("report")(report)
app.command("version")(version)


def main() -> None:
    """Entry point of the console script; ends the process with the exit status."""
    app()
