# SPDX-License-Identifier: Apache-2.0
"""One master of two buses, with two slaves on each: what holds for all of them as if there were one bus."""

import time

import pytest
import smp
from plant import Plant

# By bus. Seats are four to a bus (two.conf).
UIDS = [[0x1001, 0x1002], [0x2001, 0x2002]]
ALL = {uid for bus in UIDS for uid in bus}
SEATS = 4
RATIO = 0.5


@pytest.fixture(scope="module")
def plant(images, request, tmp_path_factory):
    kind, directory = request.config.getoption("--bus"), tmp_path_factory.mktemp("two")
    with Plant(images["master"], images["slave"], kind, ratio=RATIO, directory=directory, buses=2) as plant:
        plant.start_master()
        for bus, uids in enumerate(UIDS):
            for uid in uids:
                plant.add_slave(uid, bus=bus)
        plant.wait("all joined", lambda m: set(m) == ALL, 60)
        yield plant


def nodes(plant):
    return {uid: node[0] for uid, node in plant.members().items()}


def trips_seen(plant, uid):
    stats = plant.client.ask_slave(nodes(plant)[uid], smp.READ, smp.GROUP_STAT, 0, {"name": "slave"})
    return stats["fields"]["trips_seen"]


def test_seats_are_numbered_through_and_kept(plant):
    seats = nodes(plant)
    assert {seats[uid] for uid in UIDS[0]} == {1, 2}
    assert {seats[uid] for uid in UIDS[1]} == {SEATS + 1, SEATS + 2}
    time.sleep(3 / plant.ratio)
    assert nodes(plant) == seats


def test_telemetry_of_both_buses_is_complete(plant):
    deadline, whole = plant.deadline(30), set()
    since = plant.client.status()["seq_next"]
    while whole != ALL and time.monotonic() < deadline:
        records, since = plant.client.records(since)
        whole |= {
            int(r["uid"], 16)
            for r in records
            if r["kind"] == "slave" and r["cells_mv"] and None not in r["cells_mv"] + r["temps_dc"]
        }
        time.sleep(0.3)
    assert whole == ALL


def test_slaves_of_both_buses_answer_through_the_master(plant):
    for uid, node in nodes(plant).items():
        answer = plant.client.ask_slave(node, smp.WRITE, smp.GROUP_OS, 0, {"d": f"{uid:x}"})
        assert answer == {"r": f"{uid:x}"}


def test_the_gates_of_both_buses_follow(plant):
    plant.client.ask(smp.WRITE, smp.GROUP_HELIO, smp.COMMAND, {"cmd": "gate", "on": True})
    plant.wait("gates on", lambda m: all(uid in m and m[uid][7] for uid in ALL), 20)


def test_a_killed_slave_is_missed_and_comes_back_to_its_seat(plant):
    victim, seats = UIDS[1][0], nodes(plant)
    plant.kill(victim)
    plant.wait("missed", lambda m: set(m) == ALL - {victim}, 30)
    plant.add_slave(victim, bus=1)
    plant.wait("back", lambda m: set(m) == ALL, 30)
    assert nodes(plant) == seats


@pytest.mark.parametrize("bus", [0, 1])
def test_a_trip_on_one_bus_is_seen_on_the_other(plant, bus):
    sick, witness = UIDS[bus][1], UIDS[1 - bus][1]
    before = trips_seen(plant, witness)
    plant.play_over_voltage(sick)
    plant.wait("tripped", lambda m: sick in m and m[sick][2] == "tripped" and not m[sick][7], 60)
    assert trips_seen(plant, witness) > before
    assert set(plant.members()) == ALL


def test_a_device_that_is_moved_to_the_other_bus_is_turned_out_while_it_is_a_member_here(plant):
    moved, since = UIDS[0][0], plant.client.status()["seq_next"]
    seats, first = nodes(plant), plant.slaves[moved]
    plant.add_slave(moved, bus=1)
    try:
        deadline, duplicate = plant.deadline(20), None
        while not duplicate and time.monotonic() < deadline:
            records, since = plant.client.records(since)
            duplicate = next((r for r in records if r["kind"] == "event" and r["what"] == "duplicate"), None)
            time.sleep(0.2)
        assert duplicate and int(duplicate["uid"], 16) == moved
        assert nodes(plant) == seats
    finally:
        first.kill()
    plant.wait("moved", lambda m: moved in m and m[moved][0] > SEATS, 30)
