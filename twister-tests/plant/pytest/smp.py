# SPDX-License-Identifier: Apache-2.0
"""SMP over a serial line, as small as the tests need it."""

import base64
import binascii
import os
import select
import socket
import stat
import struct
import time
import tty

import cbor2

GROUP_OS, GROUP_IMG, GROUP_STAT, GROUP_HELIO = 0, 1, 2, 64
STATUS, TELEMETRY, COMMAND, TUNNEL = 0, 1, 3, 4
READ, WRITE = 0, 2


def header(op, group, command, seq, length):
    return struct.pack(">BBHHBB", 0x08 | op, 0, length, group, seq, command)


class Client:
    """One client on a serial line: a terminal, or the socket that QEMU makes of one."""

    def __init__(self, path):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(path))
            self.fd = self.socket.fileno()
        else:
            self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(self.fd)
        self.seq = 0
        # Time of the firmware's clock per second of ours; patience is in the firmware's.
        self.ratio = 1.0

    def send(self, datagram):
        packet = struct.pack(">H", len(datagram) + 2) + datagram
        packet += struct.pack(">H", binascii.crc_hqx(datagram, 0))
        text = base64.b64encode(packet)
        for at in range(0, len(text), 124):
            mark = b"\x06\x09" if at == 0 else b"\x04\x14"
            os.write(self.fd, mark + text[at : at + 124] + b"\n")

    def receive(self, seconds):
        """The next datagram, or None."""
        end, line, packet = time.monotonic() + seconds, b"", None
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                break
            octet = os.read(self.fd, 1)
            if octet != b"\n":
                line += octet
                continue
            if b"\x06\x09" in line:
                packet = base64.b64decode(line.split(b"\x06\x09")[-1])
            elif b"\x04\x14" in line and packet is not None:
                packet += base64.b64decode(line.split(b"\x04\x14")[-1])
            line = b""
            if packet and len(packet) >= 2 + struct.unpack(">H", packet[:2])[0]:
                body, check = packet[2:-2], struct.unpack(">H", packet[-2:])[0]
                if binascii.crc_hqx(body, 0) == check:
                    return body
                packet = None
        return None

    def ask(self, op, group, command, body=None, seconds=3.0, tries=3):
        """The body of the answer; asks again when none comes, as clients do."""
        self.seq = (self.seq + 1) % 256
        payload = cbor2.dumps(body or {})
        for _ in range(tries):
            self.send(header(op, group, command, self.seq, len(payload)) + payload)
            while answer := self.receive(seconds / self.ratio):
                if answer[6] == self.seq:
                    return cbor2.loads(answer[8:])
        raise TimeoutError(f"no answer to group {group} command {command}")

    def ask_slave(self, node, op, group, command, body=None, seconds=5.0):
        """The same from a slave, through the master."""
        payload = cbor2.dumps(body or {})
        inner = header(op, group, command, 7, len(payload)) + payload
        outer = {"node": node, "timeout_ms": int(seconds * 1000), "d": inner}
        answer = self.ask(WRITE, GROUP_HELIO, TUNNEL, outer, seconds=seconds + 1)
        if "d" not in answer:
            raise TimeoutError(f"slave {node}: {answer}")
        return cbor2.loads(answer["d"][8:])

    def status(self):
        """Status with the whole table of nodes."""
        status = self.ask(READ, GROUP_HELIO, STATUS)
        while len(status["nodes"]) < status["total"]:
            more = self.ask(READ, GROUP_HELIO, STATUS, {"off": len(status["nodes"])})["nodes"]
            if not more:
                break
            status["nodes"] += more
        return status

    def records(self, since=0):
        """All records from there on that are still kept, and where to ask next."""
        found = []
        while True:
            answer = self.ask(READ, GROUP_HELIO, TELEMETRY, {"since": since})
            found += answer["records"]
            if not answer["records"] or answer["next"] == since:
                return found, answer["next"]
            since = answer["next"]


class UdpClient(Client):
    """The same over UDP."""

    def __init__(self, port, ratio=1.0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.seq, self.ratio = 0, ratio

    def send(self, datagram):
        self.socket.send(datagram)

    def receive(self, seconds):
        ready = select.select([self.socket], [], [], seconds)[0]
        return self.socket.recv(4096) if ready else None
