# SPDX-License-Identifier: Apache-2.0
"""SMP over a serial line, as small as the tests need it, and a line that several UARTs share."""

import base64
import binascii
import os
import pty
import select
import struct
import threading
import time
import tty

import cbor2

GROUP_OS, GROUP_STAT, GROUP_HELIO = 0, 2, 64
STATUS, TELEMETRY, COMMAND, TUNNEL = 0, 1, 3, 4
READ, WRITE = 0, 2


def header(op, group, command, seq, length):
    return struct.pack(">BBHHBB", 0x08 | op, 0, length, group, seq, command)


class Client:
    """One client on a serial line."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.fd)
        self.seq = 0

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
            while answer := self.receive(seconds):
                if answer[6] == self.seq:
                    return cbor2.loads(answer[8:])
        raise TimeoutError(f"no answer to group {group} command {command}")

    def ask_slave(self, node, op, group, command, body=None, seconds=5.0):
        """The same from a slave, through the master."""
        payload = cbor2.dumps(body or {})
        inner = header(op, group, command, 7, len(payload)) + payload
        outer = {"node": node, "timeout_ms": int(seconds * 1000), "d": inner}
        answer = self.ask(WRITE, GROUP_HELIO, TUNNEL, outer, seconds=seconds + 1)
        assert "d" in answer, answer
        return cbor2.loads(answer["d"][8:])

    def status(self):
        return self.ask(READ, GROUP_HELIO, STATUS)

    def records(self, since=0):
        return self.ask(READ, GROUP_HELIO, TELEMETRY, {"since": since})


def make_tty(path):
    """A terminal of the host under a name of ours; the end that is ours."""
    ours, theirs = pty.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    os.symlink(os.ttyname(theirs), path)
    return ours, theirs


class Line(threading.Thread):
    """What one end says, all others hear. Ends may come while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.poll = select.poll()
        self.ends = {}
        self.running = True

    def add(self, path):
        ours, theirs = make_tty(path)
        self.ends[ours] = theirs
        self.poll.register(ours, select.POLLIN)
        return str(path)

    def run(self):
        while self.running:
            for fd, _ in self.poll.poll(50):
                try:
                    said = os.read(fd, 4096)
                except OSError:
                    continue
                for other in self.ends:
                    if other != fd:
                        try:
                            os.write(other, said)
                        except OSError:
                            pass
