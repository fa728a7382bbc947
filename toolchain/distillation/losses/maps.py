r"""Losses between features at the same positions, f_s and f_t.

    fitnet  mean of (r(f_s) - f_t)^2, r the adapter where the shapes differ
            (FitNets: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550)
    at      mean over B and X of (a(f_s) - a(f_t))^2, a(f)_x = sum_c f_cx^2 / |sum_c f_c^2|_2
            (Zagoruyko, Komodakis 2017, arXiv 1612.03928, sec. 3.1)
    nst     mean k(t, t') + mean k(s, s') - 2 mean k(s, t), k(u, v) = (u . v)^2, over the channels u, v of a
            sample, each a map of length 1; mean over B
            (Huang, Wang 2017, arXiv 1707.01219, with the polynomial kernel, d = 2, c = 0)
    ab      mean of [t > 0] max(0, m - s)^2 + [t <= 0] max(0, m + s)^2 over pre-activations s, t
            (Heo, Lee, Yun, Choi 2019, arXiv 1811.03233)
    fsp     mean over B and the channels i, j of (G_s - G_t)^2, G_ij = mean_x f_ix g_jx of two layers f, g
            (Yim, Joo, Bae, Kim 2017, CVPR)

Features are [B, C, H, W], or tokens [B, N, C]; where no position is needed also [B, C]. Axes: B batch,
C channels, H height, W width, N tokens, X positions (H·W or N), I and J the channels of two layers.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.losses.arithmetic import full_precision, maps, unit
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.options import Weight


@distillation_loss(
    "fitnet",
    match="shape",
    source="FitNets: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015",
    equation="mean of (r(f_s) - f_t)², r a regressor where the shapes differ",
    default_strength=100.0,
)
@full_precision
def fitnet(student_BCX: Tensor, teacher_BCX: Tensor) -> Tensor:
    """Mean squared difference of features, of any shape.

    The paper halves the squared norm; the mean keeps a strength independent of the layer's size. Customary
    strengths belong to this form: 100 in comparisons on CIFAR-100, 1 in SAKD's.
    """
    return F.mse_loss(student_BCX, teacher_BCX)


@distillation_loss(
    "at",
    match="positions",
    source="Zagoruyko, Komodakis 2017",
    equation="mean of (a(f_s) - a(f_t))², a(f) = Σ_c f_c² at length 1",
    default_strength=1000.0,
)
@full_precision
def at(student_BCX: Tensor, teacher_BCX: Tensor) -> Tensor:
    """Mean squared difference of normalized attention maps; channel counts may differ."""
    return F.mse_loss(_attention(student_BCX), _attention(teacher_BCX))


@distillation_loss(
    "nst",
    match="positions",
    source="Huang, Wang 2017",
    equation="MMD² of the channels' maps at length 1, kernel k(u, v) = (u·v)²",
    default_strength=50.0,
)
@full_precision
def nst(student_BCX: Tensor, teacher_BDX: Tensor) -> Tensor:
    """Distance between the distributions of channel maps; channel counts may differ."""
    s_BCX, t_BDX = unit(maps(student_BCX)), unit(maps(teacher_BDX))
    return _kernel(t_BDX, t_BDX) + _kernel(s_BCX, s_BCX) - 2 * _kernel(s_BCX, t_BDX)


@distillation_loss(
    "ab",
    match="shape",
    source="Heo, Lee, Yun, Choi 2019",
    equation="mean of [t > 0] max(0, m - s)² + [t ≤ 0] max(0, m + s)² over pre-activations",
    default_strength=1.0,
)
@full_precision
def ab(student_BCX: Tensor, teacher_BCX: Tensor, margin: Weight = 1.0) -> Tensor:
    """Only which neurons are active, with a margin; the spot is the layer before the activation.

    The paper sums over neurons; the mean keeps a strength independent of the layer's size, and is smaller
    than what published comparisons call 1: a thousandth of three times that sum. The authors
    train with this loss alone, as an initialization, before they train with labels.
    """
    side_BCX = (teacher_BCX > 0).to(student_BCX.dtype) * 2 - 1
    return F.relu(margin - side_BCX * student_BCX).square().mean()


@distillation_loss(
    "fsp",
    match="pair",
    source="Yim, Joo, Bae, Kim 2017",
    equation="mean of (G_s - G_t)², G_ij = mean_x f_ix g_jx of two layers f, g",
    default_strength=50.0,
)
@full_precision
def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Flow between two layers: which channels of the one go with which of the other.

    Both networks have the same number of channels at each of the two spots; their resolutions may differ.
    Where a network's own two layers differ in resolution the larger map is max-pooled to the smaller, as
    in the paper; published comparisons, whose strength is the customary one, average there.

    Raises:
        ConfigError: Channels differ, or two layers of tokens differ in length.
    """
    flow_s_BIJ, flow_t_BIJ = _flow(student), _flow(teacher)
    if flow_s_BIJ.shape != flow_t_BIJ.shape:
        raise ConfigError(
            f"distil.losses (fsp).spot: channels {tuple(flow_s_BIJ.shape[1:])} in the student and "
            f"{tuple(flow_t_BIJ.shape[1:])} in the teacher; accepted are equal ones; choose other spots"
        )
    return F.mse_loss(flow_s_BIJ, flow_t_BIJ)


def _attention(features_BCX: Tensor) -> Tensor:
    return unit(maps(features_BCX).square().sum(1))


def _kernel(u_BCX: Tensor, v_BDX: Tensor) -> Tensor:
    return (u_BCX @ v_BDX.transpose(1, 2)).square().mean()


def _flow(layers: tuple[Tensor, Tensor]) -> Tensor:
    f, g = layers
    if f.shape[2:] != g.shape[2:] and f.dim() == g.dim() == 4:
        smaller = (min(f.shape[2], g.shape[2]), min(f.shape[3], g.shape[3]))
        f, g = F.adaptive_max_pool2d(f, smaller), F.adaptive_max_pool2d(g, smaller)
    f_BIX, g_BJX = maps(f), maps(g)
    if f_BIX.shape[2] != g_BJX.shape[2]:
        raise ConfigError(
            f"distil.losses (fsp).spot: {tuple(f.shape[1:])} and {tuple(g.shape[1:])} in one network; "
            "accepted are two layers of the same positions; choose other spots"
        )
    return f_BIX @ g_BJX.transpose(1, 2) / f_BIX.shape[2]
