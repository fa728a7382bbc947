"""The file of named devices."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.devices.inventory import Entry, Inventory, default_path
from deploy.errors import CompressDeployError, ConfigError, DeviceError, StorageError


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return Inventory(tmp_path / "config" / "devices.json")


def test_none_at_first(inventory: Inventory) -> None:
    assert inventory.entries() == ()
    with pytest.raises(DeviceError, match=r"device 'orin' is not known; known are local;"):
        inventory.find("orin")


def test_what_was_added_is_found_again(inventory: Inventory) -> None:
    entries = (
        Entry("nano", "ssh://nano.local", python="/usr/bin/python3.8", folder="/data"),
        Entry("orin", "ssh://me@10.0.0.2:2222", jump="gate", ssh_config="/etc/ssh/lab"),
    )
    for entry in reversed(entries):
        inventory.add(entry)
    assert inventory.entries() == entries
    assert inventory.find("orin") == entries[1]
    assert inventory.remove("nano") == entries[0]
    assert inventory.entries() == entries[1:]
    assert sorted(path.name for path in inventory.path.parent.iterdir()) == ["devices.json"]


def test_of_several_who_add_at_once_none_is_lost(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Inventory.entries

    def slowly(self: Inventory) -> tuple[Entry, ...]:
        entries = read(self)
        time.sleep(0.01)  # long enough for all others to have read the same
        return entries

    inventory.add(Entry("old", "ssh://old"))
    monkeypatch.setattr(Inventory, "entries", slowly)
    names = [f"board{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names) + 1) as pool:
        done = [pool.submit(inventory.add, Entry(name, f"ssh://{name}")) for name in names]
        done.append(pool.submit(inventory.remove, "old"))
    assert [each.exception() for each in done] == [None] * len(done)
    assert [entry.name for entry in read(inventory)] == names
    assert sorted(path.name for path in inventory.path.parent.iterdir()) == ["devices.json"]


def test_a_name_is_not_taken_over_by_accident(inventory: Inventory) -> None:
    inventory.add(Entry("orin", "ssh://one"))
    with pytest.raises(ConfigError, match="'orin' is ssh://one already; .* --replace"):
        inventory.add(Entry("orin", "ssh://two"))
    inventory.add(Entry("orin", "ssh://two"), replace=True)
    assert inventory.find("orin").url == "ssh://two"


@pytest.mark.parametrize("name", ["", "local", "a b", "a/b", "-a", "a,b", "ü"])
def test_names_that_would_not_work_are_refused(inventory: Inventory, name: str) -> None:
    with pytest.raises(ConfigError, match="device name"):
        inventory.add(Entry(name, "ssh://one"))


def test_the_local_machine_cannot_be_removed(inventory: Inventory) -> None:
    with pytest.raises(DeviceError, match="always there"):
        inventory.remove("local")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"orin": "ssh://one"}', "must be an object"),
        ('{"orin": {}}', "orin: it has no url"),
        ('{"orin": {"url": "ssh://one", "pyhton": "x"}}', r"orin: unknown \['pyhton'\]"),
        ('{"orin": {"url": 3}}', "every value has to be a text"),
    ],
)
def test_a_damaged_file_is_named(inventory: Inventory, text: str, said: str) -> None:
    inventory.path.parent.mkdir()
    inventory.path.write_text(text)
    with pytest.raises(CompressDeployError, match=f"devices.json: .*{said}"):
        inventory.entries()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file")
    with pytest.raises(StorageError, match="cannot be"):
        Inventory(tmp_path / "config" / "devices.json").add(Entry("orin", "ssh://one"))


def test_it_lies_where_settings_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "compress-deploy" / "devices.json"
    Inventory().add(Entry("orin", "ssh://one"))
    assert json.loads(default_path().read_text()) == {
        "orin": {"url": "ssh://one", "python": "python3"}
    }
