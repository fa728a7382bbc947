"""Names of networks: one owner each, and a spelling mistake is answered with what exists."""

from __future__ import annotations

import pytest
from torch import nn

from deploy.errors import ConfigError
from toolchain.models import registry


def test_every_builtin_is_listed() -> None:
    assert {"cifar_resnet", "vgg", "mobilenet_v2", "ds_cnn", "mlp"} <= set(registry.names())


def test_second_owner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", {})
    registry.register("net")(nn.Identity)
    with pytest.raises(ValueError, match="'net' is already registered by torch"):
        registry.register("net")(nn.Flatten)
    assert registry._BUILDERS["net"] is nn.Identity


def test_unknown_name_lists_what_exists_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match="cifar_resnet.*mlp.*did you mean 'cifar_resnet'"):
        registry.build("cifar_resnt")


def test_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no argument 'dept'.*did you mean 'depth'"):
        registry.build("cifar_resnet", dept=20)


def test_builder_error_is_one_line_with_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int = 3) -> nn.Module:
        raise TypeError("first\nsecond")

    registry.names()
    monkeypatch.setitem(registry._BUILDERS, "broken", broken)
    with pytest.raises(ConfigError, match=r"TypeError: first second.*broken\(size=3\)") as caught:
        registry.build("broken")
    assert "\n" not in str(caught.value)


def test_required_argument_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def needy(size: int) -> nn.Module:
        return nn.Linear(size, size)

    registry.names()
    monkeypatch.setitem(registry._BUILDERS, "needy", needy)
    with pytest.raises(ConfigError, match="needy needs size"):
        registry.build("needy")
