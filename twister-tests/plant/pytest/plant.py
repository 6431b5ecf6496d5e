# SPDX-License-Identifier: Apache-2.0
"""One master and some slaves, each a firmware in emulation, on the bus or buses of `helio hub`.

Used by the pytest harness and by tools/plant. A firmware is an image of native_sim (zephyr.exe) or of
mps2/an386 (zephyr.elf, run in QEMU); which one, the file tells.
"""

import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tty

from smp import Client
from urgent import urgent

ABSENT = "absent"
# What QEMU's timers of mps2/an386 count in a second.
QEMU_HZ = 25_000_000
# Where mps2/an386 looks for its unique id and the faults to play: app-slave/boards/mps2_an386.conf.
UID_ADDRESS = 0x203FFFF0


def find_helio():
    """`helio`: $HELIO, or what cargo has built, or whatever is on the path."""
    root = pathlib.Path(__file__).resolve().parents[3]
    built = [root / "target" / kind / "helio" for kind in ("release", "debug")]
    for candidate in [os.environ.get("HELIO"), *built, shutil.which("helio")]:
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    raise FileNotFoundError("no helio: build it with `cargo build -p helio`, or name it in HELIO")


def ratio_of(elf):
    """Seconds of an emulated firmware in one of QEMU's: less than 1 where it believes in a faster clock."""
    config = (pathlib.Path(elf).parent / ".config").read_text()
    return QEMU_HZ / int(re.search(r"^CONFIG_SYS_CLOCK_HW_CYCLES_PER_SEC=(\d+)", config, re.M)[1])


class Firmware:
    """One process."""

    def __init__(self, name, command, log):
        self.name, self.log = name, pathlib.Path(log)
        with open(log, "ab") as to:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.STDOUT, preexec_fn=urgent
            )

    def said(self):
        """Everything on its console so far."""
        return self.log.read_text(errors="replace")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Wire:
    """One bus: a hub, and where firmwares find it."""

    def __init__(self, kind, ends, directory, helio):
        self.can, self.ptys, self.line = directory / "can", directory / "bus", directory / "line"
        self.next_end = 0
        command = [helio, "hub", "--json"]
        if kind == "can":
            command += ["--can", str(self.can)]
        else:
            command += ["--ptys", str(ends), "--dir", str(self.ptys), "--listen", str(self.line)]
        self.hub = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, preexec_fn=urgent)
        if not select.select([self.hub.stdout], [], [], 20)[0] or not self.hub.stdout.readline():
            raise RuntimeError("helio hub did not start")

    def end(self):
        """A terminal of an RS485 bus that nobody has yet."""
        self.next_end += 1
        return self.ptys / str(self.next_end - 1)

    def stop(self):
        """Its figures."""
        self.hub.send_signal(signal.SIGINT)
        try:
            figures = self.hub.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            self.hub.kill()
            figures = b""
        return json.loads(figures) if figures.strip() else {}


class Plant:
    """Some buses, a master on all of them and as many slaves as are added."""

    def __init__(self, master, slave, bus="rs485", ends=8, ratio=1.0, helio=None, directory=None, buses=1):
        self.master_image, self.slave_image = pathlib.Path(master), pathlib.Path(slave)
        self.bus = bus
        self.ratio = ratio_of(master) if self.master_image.suffix == ".elf" else ratio
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="helio-plant-"))
        self.dir.mkdir(parents=True, exist_ok=True)
        self.slaves, self.kept, self.client, self.master = {}, [], None, None
        self.udp_port = None
        self.wires = []
        for n in range(buses):
            place = self.dir / f"wire{n}"
            place.mkdir(exist_ok=True)
            self.wires.append(Wire(bus, ends, place, helio or find_helio()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def start_master(self):
        image = self.master_image
        if image.suffix == ".elf":
            clients = self.dir / "clients"
            command = self.qemu(image, self.wires[0], 0xFFFF) + ["-serial", f"unix:{clients},server=on,wait=off"]
            self.master = Firmware("master", command, self.dir / "master.log")
            deadline = time.monotonic() + 10
            while not clients.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        else:
            ours, theirs = pty.openpty()
            tty.setraw(ours)
            tty.setraw(theirs)
            other, clients = pty.openpty()
            tty.setraw(other)
            tty.setraw(clients)
            self.kept += [ours, theirs, other, clients]
            # The firmware and the client each want a terminal: one process holds them together.
            self.joiner = subprocess.Popen(
                ["python3", "-c", JOINER, str(ours), str(other)], pass_fds=[ours, other], preexec_fn=urgent
            )
            clients, line = os.ttyname(clients), os.ttyname(theirs)
            command = self.native(image, *self.wires) + [f"--northbound_port={line}"]
            if "CONFIG_HELIO_NORTHBOUND_UDP=y" in (image.parent / ".config").read_text():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                    free.bind(("127.0.0.1", 0))
                    self.udp_port = free.getsockname()[1]
                command.append(f"--udp_port={self.udp_port}")
            self.master = Firmware("master", command, self.dir / "master.log")
        self.client = Client(clients)
        self.client.ratio = self.ratio

    def add_slave(self, uid, over_voltage_ms=0, hang_ms=0, image=None, bus=0):
        image = pathlib.Path(image or self.slave_image)
        if image.suffix == ".elf":
            command = self.qemu(image, self.wires[bus], uid, over_voltage_ms, hang_ms)
        else:
            command = self.native(image, self.wires[bus]) + [f"--uid={uid}"]
        self.slaves[uid] = Firmware(f"slave {uid}", command, self.dir / f"slave-{uid}.log")
        return self.slaves[uid]

    def native(self, image, *wires):
        command = [str(image), f"--rt-ratio={self.ratio}"]
        for n, wire in enumerate(wires):
            # As the nodes are called in the overlays of the apps.
            node = ("hubcan" if self.bus == "can" else "rs485") + (f"-{n}" if n else "")
            command.append(f"--{node}-hub={wire.can}" if self.bus == "can" else f"--{node}_port={wire.end()}")
        return command

    def qemu(self, image, wire, uid, over_voltage_ms=0, hang_ms=0):
        words = uid | over_voltage_ms << 64 | hang_ms << 96
        command = "qemu-system-arm -machine mps2-an386 -cpu cortex-m4 -display none -monitor none".split()
        for n in range(2):
            part = words >> 64 * n & (1 << 64) - 1
            command += ["-device", f"loader,addr={UID_ADDRESS + 8 * n:#x},data={part:#x},data-len=8"]
        command += ["-kernel", str(image), "-serial", "stdio"]
        command += ["-chardev", f"socket,id=bus,path={wire.line}", "-serial", "chardev:bus"]
        return command

    def kill(self, uid):
        self.slaves.pop(uid).kill()

    def play_over_voltage(self, uid):
        """To a slave of native_sim: on, and off the next time."""
        self.slaves[uid].process.send_signal(signal.SIGUSR1)

    def play_hang(self, uid):
        self.slaves[uid].process.send_signal(signal.SIGUSR2)

    def members(self):
        """Nodes that are there now, by unique id."""
        return {int(n[1], 16): n for n in self.client.status()["nodes"] if n[2] != ABSENT}

    def deadline(self, seconds):
        """When so many seconds of the firmware's have passed, by `time.monotonic`."""
        return time.monotonic() + seconds / self.ratio

    def wait(self, what, holds, seconds, tell=None):
        """Until `holds(members)`; the members then. Seconds are the firmware's."""
        deadline, members = self.deadline(seconds), {}
        while time.monotonic() < deadline:
            members = self.members()
            if tell:
                tell(members)
            if holds(members):
                return members
            time.sleep(0.2)
        raise TimeoutError(f"not {what} within {seconds} s; there are {sorted(members)}")

    def stop(self):
        """Ends all; the figures of each bus's hub."""
        for firmware in [self.master, *self.slaves.values()]:
            if firmware:
                firmware.kill()
        figures = [wire.stop() for wire in self.wires]
        if joiner := getattr(self, "joiner", None):
            joiner.kill()
            joiner.wait()
        for fd in self.kept:
            os.close(fd)
        self.kept = []
        return figures


JOINER = """
import os, select, sys
a, b = int(sys.argv[1]), int(sys.argv[2])
while True:
    for fd in select.select([a, b], [], [])[0]:
        os.write(b if fd == a else a, os.read(fd, 4096))
"""
