"""The table of public data sets: complete, unambiguous, and safe to build file names from."""

from __future__ import annotations

import re

from safejax.data import catalog
from safejax.scores import DSRL, d4rl_score

ENTRIES = [catalog.find(name) for name in catalog.names()]


def test_every_data_set_of_dsrl_is_named_with_two_hosts():
    assert set(DSRL) <= set(catalog.names())
    for name in DSRL:
        entry = catalog.find(name)
        assert [address.split("/")[2] for address in entry.addresses] == ["huggingface.co", "data.offline-saferl.org"]
    assert catalog.find("OfflineCarRun-v0").file == "SafetyCarRun-v0-40-651.hdf5"
    assert catalog.find("OfflineMetadrive-harddense-v0") is catalog.find("harddense")


def test_every_other_name_has_a_d4rl_score():
    others = [name for name in catalog.names() if name not in DSRL]
    assert len(others) == 59
    assert all(d4rl_score(name, 0.0) < 100 for name in others)


def test_the_table_is_well_formed():
    assert len({entry.file for entry in ENTRIES}) == len({entry.name for entry in ENTRIES}) == len(ENTRIES) == 97
    for entry in ENTRIES:
        assert re.fullmatch(r"[\w-]+\.hdf5", entry.file)
        assert all(re.fullmatch(rf"https?://[\w./-]+/{entry.file}", address) for address in entry.addresses)
        assert (entry.size is None) == (entry.sha256 is None)
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    known = [entry.sha256 for entry in ENTRIES if entry.sha256]
    assert len(set(known)) == len(known) == 49


def test_an_address_is_its_host_and_path():
    assert catalog.find("hopper-medium-v2").addresses == (
        "https://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5",
        "https://huggingface.co/datasets/imone/D4RL/resolve/main/hopper_medium-v2.hdf5",
    )
    assert catalog.find("nowhere-v2") is None
    assert catalog.nearest("hopper-medum-v2")[0] == "hopper-medium-v2"
