"""SAKD's routing network: which stream a sample takes, and what no gradient or statistic reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from deploy.errors import ConfigError
from toolchain.distillation.controllers.spot_adaptive.crossings import Crossing, crossings
from toolchain.distillation.controllers.spot_adaptive.routing import (
    RoutingNetwork,
    mix,
    weights_fixed,
)
from toolchain.distillation.slices import slice_network
from toolchain.graph import trace
from toolchain.models.cifar_resnet import cifar_resnet

SPOTS = ("layer1", "layer2")


class Scene:
    """Two small networks with a route between them, and a batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = _network(4)
        self.teacher = _network(6).eval().requires_grad_(False)
        self.images = torch.randn(5, 3, 8, 8)
        first = slice_network(self.teacher, SPOTS).run(self.images, 0, 1).detach()
        self.first, inner = first, {"layer1": (4, 6, 8), "layer2": (8, 12, 4)}
        self.across = crossings(
            {
                spot: (torch.Size((5, s, n, n)), torch.Size((5, t, n, n)))
                for spot, (s, t, n) in inner.items()
            }
        )
        pieces = [slice_network(network, SPOTS) for network in (self.student, self.teacher)]
        self.routing = RoutingNetwork(self.student, *pieces, self.across)

    def logits(self, a_BS: Tensor) -> Tensor:
        return self.routing.logits(self.images, self.first, a_BS)


def _network(width: int) -> fx.GraphModule:
    return trace(cifar_resnet(depth=8, classes=3, width=width))


def test_the_teachers_way_all_along_is_the_teacher() -> None:
    scene = Scene()
    assert torch.allclose(scene.logits(torch.ones(5, 3)), scene.teacher(scene.images), atol=1e-6)


def test_the_students_way_all_along_is_the_student_in_eval_mode() -> None:
    scene = Scene()
    routed = scene.logits(torch.zeros(5, 3))
    assert torch.allclose(routed, scene.student.eval()(scene.images), atol=1e-6)


def test_a_mixed_route_is_what_the_equations_say() -> None:
    scene = Scene()
    scene.across.eval()  # statistics of a batch would see other samples
    a_BS = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]]).float()
    routed = scene.logits(a_BS)
    student, teacher = scene.student.eval(), scene.teacher
    cut_s, cut_t = slice_network(student, SPOTS), slice_network(teacher, SPOTS)
    for sample in range(5):
        f_s = cut_s.run(scene.images[sample : sample + 1], 0, 1)
        f_t = cut_t.run(scene.images[sample : sample + 1], 0, 1)
        for spot, crossing in enumerate(scene.across):
            assert isinstance(crossing, Crossing)
            taken = a_BS[sample, spot].item() == 1
            u_t = f_t if taken else crossing.to_teacher(f_s)
            u_s = crossing.to_student(f_t) if taken else f_s
            f_s, f_t = cut_s.run(u_s, spot + 1, spot + 2), cut_t.run(u_t, spot + 1, spot + 2)
        expected = f_t if a_BS[sample, 2] == 1 else f_s
        assert torch.allclose(routed[sample], expected[0], atol=1e-5)


def test_only_decisions_and_crossings_get_a_gradient() -> None:
    scene = Scene()
    a_BS = torch.rand(5, 3).round().requires_grad_(True)
    scene.logits(a_BS).square().sum().backward()
    assert a_BS.grad is not None and (a_BS.grad != 0).all()
    assert all(p.grad is not None for p in scene.across.parameters())
    for network in (scene.student, scene.teacher):
        assert all(p.grad is None for p in network.parameters())


def test_the_student_is_left_as_it_was() -> None:
    scene = Scene()
    scene.student.train()
    scene.student.get_submodule("layer1.0.bn1").eval()  # a mode of its own
    scene.student.get_parameter("linear.bias").requires_grad_(False)
    modes = [module.training for module in scene.student.modules()]
    wanted = [p.requires_grad for p in scene.student.parameters()]
    state = {name: value.clone() for name, value in scene.student.state_dict().items()}
    scene.logits(torch.rand(5, 3).round())
    assert modes == [module.training for module in scene.student.modules()]
    assert wanted == [p.requires_grad for p in scene.student.parameters()]
    assert all(torch.equal(state[k], value) for k, value in scene.student.state_dict().items())


def test_weights_get_their_gradient_back_after_an_error() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), weights_fixed(network):
        assert not any(p.requires_grad for p in network.parameters())
        network(torch.ones(1, 3))
    assert all(p.requires_grad for p in network.parameters())


def test_the_graph_of_the_students_own_pass_survives_the_routing() -> None:
    scene = Scene()
    scene.student.train()
    loss = scene.student(scene.images).square().mean()
    scene.logits(torch.rand(5, 3).round())
    loss.backward()
    assert all(p.grad is not None for p in scene.student.parameters())


@pytest.mark.parametrize("shape", [(4, 3), (4, 9, 3), (4, 3, 2, 2)])
def test_mixing_picks_exactly_and_its_gradient_is_right(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    a_B = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    mixed = mix(student, teacher, a_B)
    for sample in range(4):
        assert torch.equal(mixed[sample], (student, teacher)[int(a_B[sample])][sample])
    leaves = [x.detach().clone().requires_grad_(True) for x in (student, teacher, a_B)]
    assert torch.autograd.gradcheck(mix, leaves)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 4, 8, 8), (2, 6, 8, 8)),
        ((2, 4, 8, 8), (2, 4, 8, 8)),
        ((2, 4, 8, 8), (2, 6, 4, 4)),
        ((2, 4, 7, 7), (2, 6, 14, 14)),
        ((2, 5), (2, 9)),
        ((2, 5), (2, 5)),
        ((2, 9, 5), (2, 9, 5)),
        ((2, 16, 5), (2, 6, 8, 8)),
        ((2, 4, 8, 8), (2, 16, 5)),
    ],
)
def test_there_is_a_way_across_in_both_directions(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    crossing = Crossing(torch.Size(student), torch.Size(teacher), "layer1")
    assert crossing.to_teacher(torch.randn(student)).shape == teacher
    assert crossing.to_student(torch.randn(teacher)).shape == student
    for way in (crossing.to_teacher, crossing.to_student):
        assert any(p.requires_grad for p in way.parameters())


def test_half_and_double_resolution_are_the_papers_kernels() -> None:
    crossing = Crossing(torch.Size((2, 4, 8, 8)), torch.Size((2, 6, 4, 4)), "layer1")
    down, up = crossing.to_teacher[0], crossing.to_student[0]  # type: ignore[index]
    assert isinstance(down, nn.Conv2d) and (down.kernel_size, down.stride) == ((3, 3), (2, 2))
    assert isinstance(up, nn.ConvTranspose2d) and (up.kernel_size, up.stride) == ((4, 4), (2, 2))


def test_shapes_that_nothing_joins_are_named_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"\(4, 8, 8\).*\(11, 5\)") as error:
        Crossing(torch.Size((2, 4, 8, 8)), torch.Size((2, 11, 5)), "layer1")
    assert "\n" not in str(error.value)
