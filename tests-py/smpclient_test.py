"""PyPI's smpclient, which nobody of us wrote, talks to a master.

    python smpclient_test.py HOST:PORT [--serial HOST:PORT] [--slave NODE]

HOST:PORT is the master's UDP port. --serial names a TCP port that carries the octets of its
serial line; they are given to smpclient through a pseudo-terminal. --slave also asks this slave,
through the master. Every answer of group 64 is checked against docs/northbound.md: missing,
additional and ill-typed fields fail.

Prints one line per test, ends with exit code 1 if one failed.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
import tty
from enum import IntEnum
from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, StrictBool, TypeAdapter
from smp import error as smperr
from smp import header as smphdr
from smp import message as smpmsg
from smp.os_management import EchoWriteResponse
from smp.statistics_management import STAT_MGMT_ERR
from smpclient import SMPClient
from smpclient.generics import error_v1, error_v2, success
from smpclient.requests.os_management import EchoWrite, MCUMgrParametersRead
from smpclient.requests.statistics_management import GroupData, ListOfGroups
from smpclient.transport.serial import SMPSerialTransport
from smpclient.transport.udp import SMPUDPTransport

GROUP = 64
V1 = smphdr.Version.V1

# --- docs/northbound.md as types -----------------------------------------------------------------

Uint = Annotated[int, Field(ge=0)]
Uid = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Triple = Annotated[list[int], Field(min_length=3, max_length=3)]
Ppm = Annotated[int, Field(ge=0, le=1_000_000)]
NodeState = Literal[
    "absent", "init", "standby", "active", "tripped", "isolated", "quarantined"
]
PackState = Literal["empty", "ready", "degraded", "tripped", "asleep"]
Severity = Literal["none", "warn", "derate", "trip"]
What = Literal[
    "joined", "left", "replaced", "duplicate", "refused", "quarantined", "isolated", "released",
    "trip", "alarm", "command", "map", "asleep", "awake",
    "precharging", "contactors-closed", "contactors-opened", "contactors-dropped",
    "contactors-retry", "contactors-failed",
]  # fmt: skip
Contactors = Literal[
    "none", "open", "precharging", "closed", "opening", "cooling down",
    "negative contactor welded", "positive contactor or precharge relay welded",
    "both contactors welded", "precharge path open", "short circuit at the link",
    "precharge too slow", "contactor did not close", "terminal voltage not measured",
]  # fmt: skip
# For 2, 10 and 30 s.
Horizons = Annotated[list[Uint], Field(min_length=3, max_length=3)]


class Fault(IntEnum):
    OK = 0
    UNKNOWN = 1
    NO_SUCH_NODE = 2
    OUT_OF_RANGE = 3
    NOT_NOW = 4
    MALFORMED = 5
    NO_ANSWER = 6
    BUSY = 7


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Pack(Strict):
    state: PackState
    voltage_mv: Uint | None
    current_ma: int | None
    soc_ppm: Ppm | None
    soc_min_ppm: Ppm | None
    soc_max_ppm: Ppm | None
    soh_ppm: Uint | None
    soh_min_ppm: Uint | None
    cell_min_mv: Uint | None
    cell_max_mv: Uint | None
    temp_max_dc: int | None
    members: Uint
    expected: Uint
    strings_connected: Uint
    contactors: Contactors
    link_mv: Uint | None
    discharge_w: Horizons
    charge_w: Horizons
    discharge_ma: Horizons
    charge_ma: Horizons


class Head(Strict):
    seq: Uint
    t_us: Uint


class PackRecord(Head, Pack):
    kind: Literal["pack"]
    load_ppm: Ppm
    latency_max_us: Uint | None


class SlaveRecord(Head):
    kind: Literal["slave"]
    node: Uint
    uid: Uid
    state: NodeState
    severity: Severity
    gate_on: StrictBool
    balancing: StrictBool
    current_ma: int | None
    cells_mv: list[Uint | None]
    soc_ppm: list[Ppm | None]
    temps_dc: list[int | None]
    soh_ppm: Uint | None = None
    soh_sigma_ppm: Uint | None = None
    soh_min_ppm: Uint | None = None
    resistance_ppm: Uint | None = None
    resistance_sigma_ppm: Uint | None = None


class TagRecord(Head):
    kind: Literal["tag"]
    tag: Uint
    x_mm: int
    y_mm: int
    z_mm: int
    sigma_mm: Uint
    anchors: Uint
    residual_mm: Uint
    excluded: Uint
    protection_mm: Uint | None = None
    track_mm: Triple | None = None
    track_sigma_mm: Uint | None = None
    velocity_mm_s: Triple | None = None


class EventRecord(Head):
    kind: Literal["event"]
    what: What
    node: Uint | None
    uid: Uid | None = None
    severity: Severity | None = None
    code: Uint | None = None
    index: Uint | None = None
    value: int | None = None
    active: StrictBool | None = None
    text: str


RECORD = TypeAdapter(
    Annotated[
        Union[PackRecord, SlaveRecord, TagRecord, EventRecord],
        Field(discriminator="kind"),
    ]
)
NODE = TypeAdapter(
    tuple[Uint, Uid, NodeState, Severity, Uint, Uint, Uint, StrictBool]
)
ANCHOR = TypeAdapter(tuple[Uint, Uint, Uint, int, int, int, int])


# --- Group 64 for smpclient ----------------------------------------------------------------------


class _Errors:
    class _ErrorV1(smperr.ErrorV1):
        _GROUP_ID = GROUP

    class _ErrorV2(smperr.ErrorV2[Fault]):
        _GROUP_ID = GROUP


class StatusRead(_Errors, smpmsg.ReadRequest):
    _GROUP_ID = GROUP
    _COMMAND_ID = 0
    off: int | None = None

    class _Response(smpmsg.ReadResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 0
        name: str
        uptime_ms: Uint
        seq_first: Uint
        seq_next: Uint
        bus: str
        load_ppm: Ppm
        latency_max_us: Uint | None
        pack: Pack
        refused: tuple[Uid, str, Uint | None, Uint] | None
        total: Uint
        off: Uint
        nodes: list[list]


class TelemetryRead(_Errors, smpmsg.ReadRequest):
    _GROUP_ID = GROUP
    _COMMAND_ID = 1
    since: int | None = None
    max: int | str | None = None

    class _Response(smpmsg.ReadResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 1
        first: Uint
        next: Uint
        records: list[dict]


class MapRead(_Errors, smpmsg.ReadRequest):
    _GROUP_ID = GROUP
    _COMMAND_ID = 2
    off: int = 0

    class _Response(smpmsg.ReadResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 2
        crc: Uint
        total: Uint
        off: Uint
        anchors: list[list]

        # The base class has a `version` of its own, that of the protocol.
        def __init__(self, **data):
            if "smp_data" in data:
                data.pop("version")
            super().__init__(**data)


class CommandWrite(_Errors, smpmsg.WriteRequest):
    _GROUP_ID = GROUP
    _COMMAND_ID = 3
    cmd: str
    node: int | None = None
    on: bool | None = None

    class _Response(smpmsg.WriteResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 3


class TunnelWrite(_Errors, smpmsg.WriteRequest):
    _GROUP_ID = GROUP
    _COMMAND_ID = 4
    node: int
    d: bytes

    class _Response(smpmsg.WriteResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 4
        d: bytes


class NothingRead(_Errors, smpmsg.ReadRequest):
    """A command that does not exist."""

    _GROUP_ID = GROUP
    _COMMAND_ID = 200

    class _Response(smpmsg.ReadResponse):
        _GROUP_ID = GROUP
        _COMMAND_ID = 200


async def ask(client, request):
    answer = await client.request(request)
    assert success(answer), f"{type(request).__name__} refused: {answer}"
    return answer


# --- Tests ---------------------------------------------------------------------------------------


async def an_echo_comes_back_in_either_version(client):
    for text in ["", "hello", "Grüße aus der Steuerung", "x" * 1_000]:
        assert (await ask(client, EchoWrite(d=text))).r == text
        assert (await ask(client, EchoWrite(d=text, version=V1))).r == text


async def the_parameters_are_a_datagram_of_2048(client):
    answer = await ask(client, MCUMgrParametersRead())
    assert (answer.buf_size, answer.buf_count) == (2048, 1), answer


async def every_statistic_listed_can_be_shown(client):
    names = (await ask(client, ListOfGroups())).stat_list
    assert names, "no statistics"
    for name in names:
        shown = await ask(client, GroupData(name=name))
        assert shown.name == name and shown.fields, shown


async def an_unknown_statistic_is_an_error_of_the_requests_version(client):
    answer = await client.request(GroupData(name="nobody"))
    assert error_v2(answer), answer
    assert answer.err.rc == STAT_MGMT_ERR.ERR_INVALID_GROUP, answer
    answer = await client.request(GroupData(name="nobody", version=V1))
    assert error_v1(answer) and answer.rc == smperr.MGMT_ERR.ENOENT, answer


async def an_unknown_command_is_not_supported(client):
    for version in smphdr.Version:
        answer = await client.request(NothingRead(version=version))
        assert error_v1(answer) and answer.rc == smperr.MGMT_ERR.ENOTSUP, answer


async def the_status_lists_every_node(client):
    nodes = []
    while True:
        status = await ask(client, StatusRead(off=len(nodes)))
        assert status.off == len(nodes), status
        nodes += [NODE.validate_python(tuple(row)) for row in status.nodes]
        if len(nodes) >= status.total or not status.nodes:
            break
    assert len(nodes) == status.total, f"{len(nodes)} of {status.total} nodes"
    assert status.pack.members <= len(nodes)
    seats = [row[0] for row in nodes]
    assert seats == sorted(set(seats)), seats
    # Without a body the list starts at its beginning.
    assert (await ask(client, StatusRead())).off == 0


async def telemetry_comes_whole_and_in_order(client):
    status = await ask(client, StatusRead())
    since, last, records = status.seq_first, status.seq_next, 0
    assert last > since, "no record yet"
    while since < last:
        batch = await ask(client, TelemetryRead(since=since, max=7))
        assert len(batch.records) <= 7
        assert batch.records or batch.first > since, f"stuck at {since}"
        # The oldest may have been overwritten since we asked for the status.
        since = max(since, batch.first)
        for record in batch.records:
            assert RECORD.validate_python(record).seq == since, record
            since += 1
            records += 1
        assert batch.next == since, batch
    assert records, "no record"
    late = await ask(client, TelemetryRead(since=2**40, max=7))
    assert late.records == [], late


async def a_malformed_request_is_an_error_of_the_requests_version(client):
    answer = await client.request(TelemetryRead(since=1, max="many"))
    assert error_v2(answer), answer
    assert (answer.err.group, answer.err.rc) == (GROUP, Fault.MALFORMED), answer
    answer = await client.request(TelemetryRead(since=1, max="many", version=V1))
    assert error_v1(answer) and answer.rc == smperr.MGMT_ERR.EINVAL, answer


async def the_map_comes_whole(client):
    anchors = []
    while True:
        piece = await ask(client, MapRead(off=len(anchors)))
        anchors += [ANCHOR.validate_python(tuple(row)) for row in piece.anchors]
        if len(anchors) >= piece.total or not piece.anchors:
            break
    assert len(anchors) == piece.total


async def a_command_for_nobody_is_refused(client):
    answer = await client.request(CommandWrite(cmd="isolate", node=0, on=True))
    assert error_v2(answer) and answer.err.rc == Fault.NO_SUCH_NODE, answer


async def an_echo_reaches_a_slave_through_the_master(client, node):
    inner = EchoWrite(d="deep down")
    answer = await ask(client, TunnelWrite(node=node, d=bytes(inner)))
    assert EchoWriteResponse.loads(answer.d).r == "deep down"
    answer = await client.request(TunnelWrite(node=0, d=bytes(inner)))
    assert error_v2(answer) and answer.err.rc == Fault.NO_SUCH_NODE, answer


TESTS = [
    an_echo_comes_back_in_either_version,
    the_parameters_are_a_datagram_of_2048,
    every_statistic_listed_can_be_shown,
    an_unknown_statistic_is_an_error_of_the_requests_version,
    an_unknown_command_is_not_supported,
    the_status_lists_every_node,
    telemetry_comes_whole_and_in_order,
    a_malformed_request_is_an_error_of_the_requests_version,
    the_map_comes_whole,
    a_command_for_nobody_is_refused,
]


# --- Transports and the run ----------------------------------------------------------------------


class Udp(SMPUDPTransport):
    """smpclient's own, at a port of our choice."""

    async def connect(self, address, timeout_s):
        host, port = address.rsplit(":", 1)
        await super().connect(host, timeout_s, int(port))


def pseudo_terminal(address):
    """Path of a terminal whose other end is the TCP connection."""
    host, port = address.rsplit(":", 1)
    line = socket.create_connection((host, int(port)))
    ours, theirs = os.openpty()
    tty.setraw(theirs)

    def pump(read, write):
        while octets := read():
            write(octets)

    for ends in [
        (lambda: os.read(ours, 4096), line.sendall),
        (lambda: line.recv(4096), lambda octets: os.write(ours, octets)),
    ]:
        threading.Thread(target=pump, args=ends, daemon=True).start()
    return os.ttyname(theirs)


async def run(name, client, slave):
    failed = 0
    tests = [(test, ()) for test in TESTS]
    if slave is not None:
        tests.append((an_echo_reaches_a_slave_through_the_master, (slave,)))
    await client.connect()
    try:
        for test, more in tests:
            try:
                await test(client, *more)
                print(f"{name}: {test.__name__} ... ok")
            except Exception as error:
                failed += 1
                print(f"{name}: {test.__name__} ... FAILED: {error!r}")
    finally:
        await client.disconnect()
    return failed


async def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("address", metavar="HOST:PORT")
    args.add_argument("--serial", metavar="HOST:PORT")
    args.add_argument("--slave", metavar="NODE", type=int)
    args = args.parse_args()
    # smpclient logs every answer that it cannot read in full, several times.
    logging.disable()
    failed = await run("udp", SMPClient(Udp(), args.address), args.slave)
    if args.serial:
        path = pseudo_terminal(args.serial)
        failed += await run("serial", SMPClient(SMPSerialTransport(), path), args.slave)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    asyncio.run(main())
