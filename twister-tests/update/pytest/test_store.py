# SPDX-License-Identifier: Apache-2.0
"""What is kept in flash outlives a power cycle: a slave's trip and what it remembers of it, what a
master knows of the cells, its name."""

import time

import pytest
from qemu import STORAGE

smp = pytest.importorskip("smp", reason="no cbor2: pip install cbor2")
GROUP_SETTINGS, DIAGNOSTICS, NODE = 3, 5, 1
BUSY = 10


@pytest.fixture
def client(plant):
    return smp.Client(plant.pty)


def state(client):
    return next(n for n in client.status()["nodes"] if n[0] == NODE)[2]


def wait(client, wanted, seconds=30):
    deadline = time.monotonic() + seconds
    while state(client) != wanted:
        assert time.monotonic() < deadline, f"{state(client)}, not {wanted}"
        time.sleep(0.2)


def remembered(client):
    """A slave that has just lost its seat on a busy host has it again soon."""
    for _ in range(20):
        try:
            return client.ask_slave(NODE, smp.READ, smp.GROUP_HELIO, DIAGNOSTICS)
        except TimeoutError:
            time.sleep(0.5)
    raise AssertionError("the slave does not tell what it remembers")


def trips(told):
    """Codes of severity trip that ever were."""
    return {event[0] for event in told["events"] if event[0] % 3 == 2}


def test_a_latched_trip_and_its_circumstances_outlive_a_power_cycle(plant, client):
    plant.power_cycle("slave", over_voltage_ms=8_000)
    wait(client, "tripped")
    before = remembered(client)
    assert before["frames"] and before["events"]
    # Flash is written by a thread that has time after everybody else.
    time.sleep(2)
    plant.power_cycle("slave")
    # The cells are well again. What tripped is not, until somebody clears it.
    for _ in range(100):
        if state(client) not in ("init", "absent"):
            break
        time.sleep(0.1)
    assert state(client) == "tripped"
    after = remembered(client)
    assert after["frames"] == before["frames"]
    # Warnings that came after the trip are stored a minute later.
    assert trips(before) and trips(before) <= trips(after)
    client.ask(smp.WRITE, smp.GROUP_HELIO, smp.COMMAND, {"cmd": "clear", "node": NODE})
    wait(client, "standby")


def test_what_a_master_knows_of_the_cells_is_in_its_flash(plant):
    # Mark, version and number of seats (app-master/core/src/keep.rs); ZMS writes it in one piece.
    deadline = time.monotonic() + 60
    while b"HK\x01\x01" not in plant.machines["master"].flash.read_bytes()[STORAGE : STORAGE + 0x10000]:
        assert time.monotonic() < deadline, "nothing was stored"
        time.sleep(0.5)
    plant.power_cycle("master")
    assert "could not be kept" not in plant.consoles()
    assert "heliograph master: 1 members" in plant.machines["master"].console()


def settings(client, op, command, body):
    """The device takes one request at a time."""
    while (answer := client.ask(op, GROUP_SETTINGS, command, body)).get("rc") == BUSY:
        time.sleep(0.1)
    assert "rc" not in answer and "err" not in answer, answer
    return answer


def test_a_name_that_a_client_saves_outlives_a_reset(plant, client):
    settings(client, smp.WRITE, 0, {"name": "helio/name", "val": b"hall 3"})
    settings(client, smp.WRITE, 3, {"save": True})
    assert settings(client, smp.READ, 0, {"name": "helio/name"})["val"] == b"hall 3"
    assert client.status()["name"] != "hall 3", "it is taken at the start"
    plant.fw("reset", "--target", "master")
    plant.joined()
    assert client.status()["name"] == "hall 3"
