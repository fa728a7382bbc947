"""The dean: a small network that every layer shares, from a layer's state to its two strengths.

    (a_l, b_l) = MLP_phi(state_l)
    alpha_l = base_l sigmoid(a_l + c) / sigmoid(c)  in (0, alpha_max base_l),   sigmoid(c) = 1 / alpha_max
    beta_l likewise, of b_l, in (0, beta_max)

The last layer starts at zero, so that at first every strength is exactly the recipe's. phi follows the
derivatives h_l of the held-out loss (``hypergradients``) by its own Adam, down the surrogate

    sum_l x_l a_l + lambda / 2 sum_l a_l^2,      x_l = h_l / rms_l if it is shown to be no noise, else 0

(``evidence``; of pruned layers with b_l). Three choices are in there:

- Every derivative is divided by the root mean square of its recent past, so that every strength has as much
  of a say, whatever its unit. Signs are the held-out loss's; how much one strength counts beside another
  is not.
- It descends in a, the log-odds of the strength, and not in the strength. Both have the same signs, but the
  slope of a sigmoid vanishes at its ends: a strength that its first, noisy probes had taken to zero could
  not come back, whatever all later ones said.
- lambda draws each strength to the recipe's. Where x_l keeps its mean, the surrogate is lowest at
  a_l = -mean(x_l) / lambda: a strength moves as far as its derivative is signal, at most to
  1 / lambda where every probe says the same, and hardly where most of it is noise.

Liu et al. 2022 (IEEE TPAMI 45(3), doc. 9804342): a meta-network, trained by meta-learning, sets both
strengths. **Reconstruction**: its architecture, ranges, and what it descends along. Axes: R rows (terms,
then layers), F features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.dean.state import FEATURES

HIDDEN = 64
# Of the first weights: at 1 the layers look so much alike at first that they get the same strengths.
GAIN = 2.0
# lambda: sigmoid(1 / lambda) is 0.98, so that a dean that is sure comes near its range's ends.
PULL = 0.25
FILE, METADATA = "dean.safetensors", "dean"


class _Facts(BaseModel):
    """What lies beside a dean's weights; of one from before noise was told apart everything moved."""

    alpha_max: float = Field(gt=1, allow_inf_nan=False)
    beta_max: float = Field(gt=1, allow_inf_nan=False)
    noise: tuple[str, ...] = ()


class DeanNetwork(nn.Module):
    """The meta-network; lives on the CPU, because its input is a few numbers per layer.

    Args:
        alpha_max: Largest distillation strength, as a factor of the recipe's; above 1.
        beta_max: Largest sparsity strength; above 1.
        seed: Of its first weights.

    Attributes:
        noise: Terms and layers whose derivatives showed no sign where it learned: a frozen dean leaves
            them alone.
    """

    def __init__(self, alpha_max: float, beta_max: float, seed: int) -> None:
        super().__init__()
        self.alpha_max, self.beta_max = alpha_max, beta_max
        self.noise: tuple[str, ...] = ()
        self.layers = nn.Sequential(
            nn.Linear(len(FEATURES), HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 2),
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.layers[0], self.layers[2]):
                assert isinstance(layer, nn.Linear)
                layer.weight.normal_(0, GAIN * layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()
            last = self.layers[4]
            assert isinstance(last, nn.Linear)
            last.weight.zero_()
            last.bias.zero_()

    def forward(self, state_RF: Tensor) -> tuple[Tensor, Tensor]:
        """a and b [R]: log-odds of each row's distillation and sparsity strength; 0 is the recipe's."""
        out_R2 = self.layers(state_RF)
        return out_R2[:, 0], out_R2[:, 1]

    def alpha(self, a_R: Tensor) -> Tensor:
        """Factors [R] on the recipe's distillation strengths."""
        return _within(a_R, self.alpha_max)

    def beta(self, b_R: Tensor) -> Tensor:
        """Factors [R] on the sparsity strengths."""
        return _within(b_R, self.beta_max)

    def save(self, path: Path, facts: Mapping[str, str]) -> None:
        """Write the weights, with the ranges and further facts beside them."""
        ranges = {"alpha_max": self.alpha_max, "beta_max": self.beta_max}
        known = json.dumps(
            {**facts, **ranges, "features": FEATURES, "noise": self.noise}, sort_keys=True
        )
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        # One entry: of several, safetensors writes the order as it comes, and the file has other bytes.
        save_file(tensors, path, metadata={METADATA: known})

    @classmethod
    def load(cls, path: Path) -> DeanNetwork:
        """The dean that an earlier run left.

        Raises:
            ConfigError: There is none at ``path``, a damaged one, or one that looks at something else.
        """
        unreadable = (
            f"distil.controller_options.load: {str(path)!r} cannot be read (%s); accepted is a {FILE} of an "
            "earlier run; it lies beside the student of the stage that wrote it"
        )
        try:
            with safe_open(path, framework="pt") as file:
                known = json.loads((file.metadata() or {}).get(METADATA, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(unreadable % error) from error
        features = known.get("features") if isinstance(known, dict) else None
        if features != list(FEATURES):
            has = ",".join(map(str, features)) if isinstance(features, list) else "nothing known"
            raise ConfigError(
                f"distil.controller_options.load: {str(path)!r} is a dean that looks at {has}; accepted is "
                f"one that looks at {','.join(FEATURES)}; train one with this version"
            )
        try:
            facts = _Facts.model_validate(known)
        except ValidationError as error:
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ConfigError(unreadable % said) from error
        dean = cls(facts.alpha_max, facts.beta_max, seed=0)
        shapes = {name: tuple(tensor.shape) for name, tensor in dean.state_dict().items()}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            raise ConfigError(unreadable % "its tensors are not those of a dean")
        dean.load_state_dict(tensors)
        dean.noise = facts.noise
        return dean


def _within(out_R: Tensor, largest: float) -> Tensor:
    """A factor in (0, largest) that is exactly 1 where ``out_R`` is 0."""
    middle = out_R.new_tensor(-math.log(largest - 1))
    return torch.sigmoid(out_R + middle) / torch.sigmoid(middle)
