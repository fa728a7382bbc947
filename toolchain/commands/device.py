"""``compress-deploy device``: the places that bundles can be measured on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Name devices to measure on, and look whether they can.",
    epilog="""Examples:

\b
  compress-deploy device add orin ssh://nvidia@192.168.55.1
  compress-deploy device check orin
  compress-deploy bench runs/flowers-1a2b3c4d/bundle --device orin
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="A short name of your choice.", show_default=False)]


@app.command("add")
def add(
    name: Name,
    url: Annotated[
        str, typer.Argument(metavar="ssh://[USER@]HOST[:PORT]", help="As ssh would reach it.")
    ],
    python: Annotated[
        str,
        typer.Option(
            help="The Python to use there, 3.8 or newer, with numpy and a runtime; '~/' is the home "
            "folder there."
        ),
    ] = "python3",
    folder: Annotated[
        str | None,
        typer.Option(
            "--dir", help="Folder to work in there.", show_default="~/.cache/compress-deploy"
        ),
    ] = None,
    jump: Annotated[
        str | None, typer.Option(help="Jump hosts, as ssh -J takes them.", show_default=False)
    ] = None,
    ssh_config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead of your own ssh configuration.",
            show_default="~/.ssh/config",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="If there is one of that name.")
    ] = False,
) -> None:
    """Give a device a name.

    Nothing is connected or installed: the system's ssh goes there when the device is used, with your
    keys, agent, jump hosts and known hosts. It never asks for a password.
    """
    from pathlib import Path

    from deploy.devices.inventory import Entry, Inventory
    from deploy.devices.url import parse_url

    parse_url(url)
    if ssh_config is not None:
        ssh_config = str(Path(ssh_config).absolute())
    inventory = Inventory()
    entry = Entry(name, url, python=python, folder=folder, jump=jump, ssh_config=ssh_config)
    inventory.add(entry, replace=replace)
    typer.echo(f"{name} is {url}; look at it with: compress-deploy device check {name}", err=True)


@app.command("check", short_help="Show what a device is and has, and what it lacks.")
def check(
    device: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URL",
            help="A device of yours, ssh://user@host, or local.",
            show_default=False,
        ),
    ],
    provider: Annotated[
        str | None,
        typer.Option(
            help="What models will run on, as in bench: ort-cpu, ort-cuda, tensorrt ...",
            show_default="any runtime will do",
        ),
    ] = None,
    power: Annotated[bool, typer.Option("--power", help="Energy will be measured too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a device is and has, and whether a bundle can be measured on it.

    Board, JetPack, CUDA and TensorRT, Python, runtimes, power mode, clocks, free memory and disk,
    power sensors with their rails, heat. Exit status 1, with the reason, when something is missing.
    """
    import json

    from deploy.devices.device import find_device

    found_device = find_device(device)
    try:
        found = found_device.check({"provider": provider, "power": power})
    finally:
        found_device.close()
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from benchmarks.check_text import rows

        table = Table(box=None, show_header=False, pad_edge=False)
        for label, line in rows(found):
            style = {"problem": "bold red", "warning": "yellow"}.get(label, "")
            table.add_row(Text(label, style or "dim"), Text(line, style))
        ready = found["ready"]
        table.add_row(
            Text("ready" if ready else "not ready", "bold green" if ready else "bold red")
        )
        Console().print(table)
    raise typer.Exit(0 if found["ready"] else 1)


@app.command("list")
def list_devices(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List the devices that have a name."""
    import dataclasses
    import json

    from deploy.devices.inventory import Inventory

    inventory = Inventory()
    entries = inventory.entries()
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("device", "where", "Python", "folder", "by way of"):
        table.add_column(title, overflow="fold")
    table.add_row("local", "this machine", "", "", "")
    for entry in entries:
        row = (entry.name, entry.url, entry.python, entry.folder or "", entry.jump or "")
        table.add_row(*row)
    Console().print(table)
    typer.echo(f"kept in {inventory.path}", err=True)


@app.command("remove")
def remove(name: Name) -> None:
    """Forget the name of a device; nothing is done on the device itself."""
    from deploy.devices.inventory import Inventory

    removed = Inventory().remove(name)
    typer.echo(f"{removed.name} ({removed.url}) is forgotten", err=True)
