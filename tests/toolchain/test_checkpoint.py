"""A checkpoint gives back the same bits, alone, or says in one line why it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx

from deploy.errors import CheckpointError
from toolchain import checkpoint
from toolchain.checkpoint import SOURCE_FILE, Spec
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.quantization.attach import Quantization, calibrate
from toolchain.quantization.attached import weight_view, weighted
from toolchain.quantization.views import View, use_view
from toolchain.structure.branches import find_branches
from toolchain.structure.groups import find_groups
from toolchain.structure.masks import hidden_share, mask_channels, mask_weights
from toolchain.structure.plan import ChannelPlan
from toolchain.structure.slim import plan_of

ROOT = Path(__file__).parents[2]
SHAPE = (3, 8, 8)
ARGS = {"depth": 14, "width": 4}
CLASSES = tuple("0123456789")
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, width, tied=False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        if tied:
            self.b.weight = self.a.weight
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(self.b(self.a(x).relu()))

def build(width=4, tied=False):
    return Net(width, tied)
"""


def plan() -> ChannelPlan:
    """Half of every group, and one branch."""
    plain = trace(registry.build("cifar_resnet", **ARGS))
    groups = [g for g in find_groups(plain, SHAPE, trial=False) if g.reason is None]
    branch = find_branches(plain, SHAPE)[1]
    kept = {group.name: range(1, group.channels, 2) for group in groups}
    return plan_of(plain, groups, kept, {branch.add: branch.kept})


PLAIN = Spec("cifar_resnet", None, ARGS, SHAPE, CLASSES)
SPECS = {
    "plain": PLAIN,
    "slim": replace(PLAIN, plan=plan()),
    "slim-quantized": replace(PLAIN, plan=plan(), quantization=Quantization(bits=4)),
    "minmax-ignore": replace(
        PLAIN, quantization=Quantization(kind="minmax", ignore=("layer1.*", "linear"))
    ),
    "masked": replace(PLAIN, masked=True, quantization=Quantization()),
    "elements": replace(PLAIN, masked=True, elements=True),
    "two-networks": replace(PLAIN, masked=True, teacher_norms=True, quantization=Quantization()),
}


def filled(spec: Spec) -> fx.GraphModule:
    """A network of this spec whose every tensor is its own, masks included."""
    torch.manual_seed(3)
    network = checkpoint.build(spec)
    calibrate(network, [torch.randn(8, *spec.input_shape)])
    if spec.elements:
        mask_weights(network, 0.4)
    elif spec.masked:
        plain = checkpoint.build(spec.plain())
        groups = [g for g in find_groups(plain, SHAPE, trial=False) if g.reason is None]
        kept = {g.name: range(g.channels // 2) for g in groups}
        branches = find_branches(plain, SHAPE)
        quantizers = {n for n, _ in network.named_modules() if n.startswith("quantizers.add")}
        mask_channels(network, groups, kept, branches[:1], quantizers)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name or name.endswith(("scale", "scale_O")):
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
        network.eval()(torch.zeros(1, *spec.input_shape))  # min-max steps follow the weights
    return network


@pytest.mark.parametrize("name", SPECS)
def test_reload_is_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    spec, network = SPECS[name], filled(SPECS[name])
    checkpoint.save(network, spec, tmp_path / "a")
    again, read = checkpoint.load(tmp_path / "a")
    assert read == spec
    assert not again.training
    before, after = network.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(
        torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in after
    )
    x = torch.randn(4, *SHAPE)
    for view in View:
        with use_view(network, view), use_view(again, view):
            assert torch.equal(network(x), again(x))
    assert hidden_share(again) == hidden_share(network)
    checkpoint.save(again, read, tmp_path / "b")
    for file in ("model.safetensors", "spec.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_spec_survives_json_and_its_plain_form_has_nothing_attached() -> None:
    for spec in SPECS.values():
        assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        plain = checkpoint.build(spec.plain())
        assert not any(weight_view(module) for _, module in weighted(plain))
        assert spec.plain().plan == spec.plan


def own_model(folder: Path, **args: object) -> tuple[fx.GraphModule, Spec]:
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    spec = Spec(None, f"{folder.resolve() / 'net.py'}:build", args, SHAPE, CLASSES)
    return checkpoint.build(spec).eval(), spec


def test_a_users_file_travels(tmp_path: Path) -> None:
    network, spec = own_model(tmp_path / "user", width=6)
    checkpoint.save(network, spec, tmp_path / "a")
    shutil.rmtree(tmp_path / "user")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    again, read = checkpoint.load(tmp_path / "moved")
    x = torch.randn(2, *SHAPE)
    assert torch.equal(again(x), network(x))
    assert read.args == {"width": 6}
    checkpoint.save(again, read, tmp_path / "next")
    assert (tmp_path / "next" / SOURCE_FILE).read_text() == NET
    checkpoint.save(again, read, tmp_path / "moved")  # onto itself
    assert torch.equal(checkpoint.load(tmp_path / "moved")[0](x), network(x))
    assert str(tmp_path) not in (tmp_path / "next" / "spec.json").read_text()


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    network, spec = own_model(tmp_path / "user", tied=True)
    checkpoint.save(network, spec, tmp_path / "a")
    again, _ = checkpoint.load(tmp_path / "a")
    x = torch.randn(2, *SHAPE)
    assert torch.equal(again(x), network(x))


CHILD = """
import sys
sys.modules["torch_pruning"] = None
from pathlib import Path
import torch
from toolchain import checkpoint
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
network, spec = checkpoint.load(folder)
x = load_file(folder / "x.safetensors")["x"]
assert "toolchain.recipe.schema" not in sys.modules and "pydantic" not in sys.modules
with torch.no_grad():
    save_file({"y": network(x)}, folder / "y.safetensors")
checkpoint.save(network, spec, folder / "again")
"""


@pytest.mark.parametrize("own", [False, True])
def test_reload_needs_neither_recipe_nor_pruning_library(own: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    if own:
        network, spec = own_model(tmp_path / "user", width=5)
    else:
        spec = SPECS["slim-quantized"]
        network = filled(spec)
    checkpoint.save(network, spec, tmp_path / "a")
    shutil.rmtree(tmp_path / "user", ignore_errors=True)
    x = torch.randn(4, *SHAPE)
    save_file({"x": x}, tmp_path / "a" / "x.safetensors")
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "a")], cwd=ROOT, check=True
    )
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "a" / "y.safetensors")["y"], network(x))
    first, second = tmp_path / "a" / "model.safetensors", tmp_path / "a/again/model.safetensors"
    assert first.read_bytes() == second.read_bytes()


def damage(folder: Path, how: str) -> None:
    spec, weights = folder / "spec.json", folder / "model.safetensors"
    record = json.loads(spec.read_text())
    if how == "format":
        spec.write_text(json.dumps({**record, "format": 99}))
    elif how == "list":
        spec.write_text("[]")
    elif how == "no json":
        spec.write_text("{")
    elif how == "no spec":
        spec.unlink()
    elif how == "key":
        del record["classes"]
        spec.write_text(json.dumps(record))
    elif how == "no weights":
        weights.unlink()
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "other widths":
        spec.write_text(json.dumps({**record, "args": {"width": 7}}))
    elif how == "source":
        (folder / SOURCE_FILE).write_text(NET.replace("relu", "tanh"))
    else:
        (folder / SOURCE_FILE).unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("format", "format 99; accepted is 1"),
        ("list", "format None; accepted is 1"),
        ("no json", "spec.json"),
        ("no spec", "spec.json"),
        ("key", "KeyError 'classes'"),
        ("no weights", "model.safetensors"),
        ("cut short", "accepted are weights saved together with spec.json"),
        ("other widths", "size mismatch for conv.weight"),
        ("source", "source.py: changed since the checkpoint was written"),
        ("no source", "source.py: missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    how: str, message: str, tmp_path: Path
) -> None:
    network, spec = own_model(tmp_path / "user")
    checkpoint.save(network, spec, tmp_path / "a")
    checkpoint.load(tmp_path / "a")
    damage(tmp_path / "a", how)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a") in str(error.value)
