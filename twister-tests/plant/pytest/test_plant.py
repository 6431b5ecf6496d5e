# SPDX-License-Identifier: Apache-2.0
"""Master and slaves on one bus: joining, telemetry, tunnel, trip, watchdog, stacks."""

import re
import subprocess
import time

import pytest
import smp
from plant import Plant, find_helio

UIDS = [0x1001, 0x1002]
HUNG, CHIP = 0x1004, 0x1005
# Firmwares of native_sim run at half the wall's time, so that a busy host is late half as much; those of QEMU
# were built to run slower still (qemu.conf).
RATIO = 0.5
# In QEMU faults come by the clock; on native_sim by signal.
SICK_AT_MS, HUNG_AT_MS = 5_000, 5_000


@pytest.fixture(scope="module")
def bus(request):
    return request.config.getoption("--bus")


@pytest.fixture(scope="module")
def plant(images, bus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("plant")
    with Plant(images["master"], images["slave"], bus, ends=12, ratio=RATIO, directory=directory) as plant:
        plant.start_master()
        for uid in UIDS:
            plant.add_slave(uid)
        plant.wait("all joined", lambda m: set(UIDS) <= set(m), 60)
        yield plant


def test_every_slave_joins_and_keeps_its_seat(plant):
    seats = {uid: node[0] for uid, node in plant.members().items()}
    assert set(seats) == set(UIDS)
    time.sleep(3 / plant.ratio)
    assert {uid: node[0] for uid, node in plant.members().items()} == seats


def test_telemetry_of_every_slave_is_complete(plant):
    deadline, whole = plant.deadline(30), {}
    since = plant.client.status()["seq_next"]
    while set(whole) < set(UIDS) and time.monotonic() < deadline:
        records, since = plant.client.records(since)
        for r in records:
            if r["kind"] == "slave" and r["cells_mv"] and None not in r["cells_mv"] + r["temps_dc"]:
                whole[int(r["uid"], 16)] = r
        time.sleep(0.3)
    assert set(whole) == set(UIDS)
    for record in whole.values():
        assert len(record["cells_mv"]) == 16
        assert all(3_640 <= mv <= 3_680 for mv in record["cells_mv"])
        assert abs(record["current_ma"]) <= 10


def test_the_master_echoes(plant):
    assert plant.client.ask(smp.WRITE, smp.GROUP_OS, 0, {"d": "hello"}) == {"r": "hello"}


def test_a_slave_echoes_through_the_master(plant):
    node = plant.members()[UIDS[1]][0]
    assert plant.client.ask_slave(node, smp.WRITE, smp.GROUP_OS, 0, {"d": "over there"}) == {
        "r": "over there"
    }


def test_a_slave_tells_its_statistics_through_the_master(plant):
    node = plant.members()[UIDS[0]][0]
    groups = plant.client.ask_slave(node, smp.READ, smp.GROUP_STAT, 1)
    assert "slave" in groups["stat_list"]
    stats = plant.client.ask_slave(node, smp.READ, smp.GROUP_STAT, 0, {"name": "slave"})
    assert stats["fields"]["samples"] > 10


def test_clients_over_udp_are_answered_each_for_itself(plant):
    if plant.udp_port is None:
        pytest.skip("built for native_sim on RS485 only")
    clients = [smp.UdpClient(plant.udp_port, plant.ratio) for _ in range(2)]
    for n, client in enumerate(clients):
        assert client.ask(smp.WRITE, smp.GROUP_OS, 0, {"d": str(n)}) == {"r": str(n)}
        assert client.status()["name"] == plant.client.status()["name"]
    # Both ask a slave, whose answers come later.
    nodes = [plant.members()[uid][0] for uid in UIDS]
    for client, node in zip(clients, nodes):
        answer = client.ask_slave(node, smp.WRITE, smp.GROUP_OS, 0, {"d": f"slave {node}"})
        assert answer == {"r": f"slave {node}"}


def test_helio_reads_a_slave_over_udp(plant):
    if plant.udp_port is None:
        pytest.skip("built for native_sim on RS485 only")
    node = plant.members()[UIDS[0]][0]
    command = [find_helio(), "fw", "list", "--target", f"slave:{node}", "--udp", f"127.0.0.1:{plant.udp_port}"]
    done = subprocess.run(command, capture_output=True, text=True)
    # It has been reached, and has no images.
    assert "image" in done.stderr and "not there" not in done.stderr, done


def test_a_request_to_an_empty_seat_is_refused_at_once(plant):
    outer = {"node": 5, "timeout_ms": 5000, "d": smp.header(smp.WRITE, 0, 0, 1, 1) + b"\xa0"}
    answer = plant.client.ask(smp.WRITE, smp.GROUP_HELIO, smp.TUNNEL, outer)
    assert "d" not in answer


def test_the_gate_follows_the_master(plant):
    plant.client.ask(smp.WRITE, smp.GROUP_HELIO, smp.COMMAND, {"cmd": "gate", "on": True})
    plant.wait("gates on", lambda m: all(uid in m and m[uid][7] for uid in UIDS), 20)
    for uid in UIDS:
        assert "gate on" in plant.slaves[uid].said()


def test_a_killed_slave_is_missed_and_comes_back(plant):
    plant.kill(UIDS[1])
    plant.wait("missed", lambda m: set(m) == {UIDS[0]}, 30)
    plant.add_slave(UIDS[1])
    plant.wait("back", lambda m: set(m) == set(UIDS), 30)


def restart(plant, uid, **faults):
    """The same device anew, with the gate on: what is off already proves nothing."""
    plant.kill(uid)
    plant.wait("missed", lambda m: uid not in m, 30)
    slave = plant.add_slave(uid, **faults)
    plant.wait("back", lambda m: uid in m, 30)
    plant.client.ask(smp.WRITE, smp.GROUP_HELIO, smp.COMMAND, {"cmd": "gate", "on": True})
    plant.wait("gate on", lambda m: uid in m and m[uid][7], 30)
    return slave


def test_over_voltage_trips_and_the_alarm_arrives(plant, emulated):
    sick = UIDS[1]
    slave = restart(plant, sick, over_voltage_ms=SICK_AT_MS)
    since = plant.client.status()["seq_next"]
    if not emulated:
        plant.play_over_voltage(sick)
    plant.wait("tripped, gate off", lambda m: sick in m and m[sick][2] == "tripped" and not m[sick][7], 60)
    said = slave.said()
    assert said.rindex("gate on") < said.rindex("gate off")
    alarms = [
        r
        for r in plant.client.records(since)[0]
        if r["kind"] == "event" and r["what"] == "alarm" and int(r["uid"], 16) == sick
    ]
    assert any(r["severity"] == "trip" and "over-voltage" in r["text"] for r in alarms), alarms


def test_a_hung_main_loop_is_reset_and_has_rejoined_within_a_second(plant, emulated):
    if not emulated:
        pytest.skip("native_sim has no watchdog")
    hung = UIDS[1]
    slave = restart(plant, hung, hang_ms=HUNG_AT_MS)
    start = slave.said().rindex("*** Booting")
    deadline = plant.deadline(30)
    # The start after the silence is the watchdog's.
    while time.monotonic() < deadline:
        before, hangs, after = slave.said()[start:].partition("main loop hangs")
        _, booted, after = after.partition("*** Booting")
        seat = re.search(r"(\d+) ms: seat \d+", after)
        if seat:
            break
        time.sleep(0.1)
    assert "gate on" in before and hangs, "it never hung with its gate on"
    assert booted, "the watchdog did not reset it"
    assert seat, "it has not rejoined"
    print(f"rejoined {seat[1]} ms after boot")
    assert int(seat[1]) <= 1_000
    assert "gate on" not in after[: seat.start()], "the gate was on before it had a seat"
    restart(plant, hung)


def test_a_hung_slave_is_missed(plant, emulated):
    if emulated:
        pytest.skip("its watchdog resets it first")
    plant.add_slave(HUNG)
    plant.wait("joined", lambda m: HUNG in m, 20)
    plant.play_hang(HUNG)
    plant.wait("missed", lambda m: HUNG not in m, 30)
    plant.kill(HUNG)


def test_cells_of_a_bq76952_arrive_at_the_master(plant, images):
    if "chip" not in images:
        pytest.skip("built for native_sim on RS485 only")
    plant.add_slave(CHIP, image=images["chip"])
    node = plant.wait("joined", lambda m: CHIP in m, 20)[CHIP]
    since, deadline, record = plant.client.status()["seq_next"], plant.deadline(20), None
    while not record and time.monotonic() < deadline:
        records, since = plant.client.records(since)
        for r in records:
            # The first may be of before its first cells came.
            if r["kind"] == "slave" and r["node"] == node[0] and r["cells_mv"] and None not in r["cells_mv"]:
                record = r
        time.sleep(0.3)
    # What zephyr/emul/bq76952_emul.c measures; the bus carries whole degrees.
    assert record["cells_mv"] == [3_600 + 10 * n for n in range(16)]
    assert record["temps_dc"] == [250, 260, 270]
    assert record["current_ma"] == 0
    plant.kill(CHIP)


def test_every_stack_has_a_quarter_to_spare(plant, emulated):
    """By Zephyr's thread analyzer, after all that went before."""
    if not emulated:
        pytest.skip("threads of native_sim are the host's")
    for firmware in plant.master, plant.slaves[UIDS[0]]:
        used = {}
        for name, now, size in re.findall(
            r"^\s*(\S.*?)\s*: STACK: unused \d+ usage (\d+) / (\d+)", firmware.said(), re.M
        ):
            used[name] = max(used.get(name, (0, 0)), (int(now), int(size)))
        assert "main" in used, firmware.said()[-2_000:]
        for name, (now, size) in used.items():
            print(f"{firmware.name}: {name} {now} of {size} bytes")
        tight = {n: u for n, u in used.items() if u[0] > 0.75 * u[1]}
        assert not tight, f"{firmware.name}: {tight}"


def test_no_image_has_a_heap(plant, images, emulated):
    if not emulated:
        pytest.skip("the host's program has the host's heap")
    from elftools.elf.elffile import ELFFile

    for name in "master", "slave":
        with open(images[name], "rb") as file:
            symbols = {s.name for s in ELFFile(file).get_section_by_name(".symtab").iter_symbols()}
        heaps = {s for s in symbols if s in ("malloc", "k_malloc", "k_heap_alloc", "_system_heap")}
        heaps |= {s for s in symbols if s.startswith("__rust_alloc") or s.startswith("__rustc::__rust_alloc")}
        assert not heaps, f"{name}: {heaps}"
