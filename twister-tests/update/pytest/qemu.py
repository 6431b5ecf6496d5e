# SPDX-License-Identifier: Apache-2.0
"""One master and one slave with MCUboot in QEMU (mps2/an386) on one RS485 hub, their flash in files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "twister-tests/plant/pytest"))
from urgent import urgent  # noqa: E402

SLOT0, SLOT1, SLOT_SIZE, STORAGE = 0x10000, 0x80000, 0x70000, 0xF0000
UIDS = {"master": 0x1000, "slave": 0x2001}


def find_helio():
    """The program: HELIO, the path, or what cargo has built here."""
    named = os.environ.get("HELIO") or shutil.which("helio")
    built = [REPO / "target" / kind / "helio" for kind in ("release", "debug")]
    return named or next((str(p) for p in built if p.exists()), None)


def config_of(build):
    """Kconfig of a built image."""
    lines = (build / "zephyr" / ".config").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line.startswith("CONFIG_"))
    return {key: value.strip('"').replace('\\"', '"') for key, value in pairs}


class Image:
    """A built application, which can be signed again under another version."""

    def __init__(self, build, dir):
        self.build, self.dir, self.config = Path(build), dir, config_of(Path(build))

    def signed(self, version):
        """The image with this version. The code is the same; hash and signature are not."""
        out = self.dir / f"{self.build.name}-{version}.bin"
        config = self.config
        key = Path(config["CONFIG_MCUBOOT_SIGNATURE_KEY_FILE"])
        command = ["imgtool", "sign", "--version", version, "--align", "8"]
        command += ["--header-size", config["CONFIG_ROM_START_OFFSET"]]
        command += ["--slot-size", hex(SLOT_SIZE), "--key", str(key)]
        mark = re.fullmatch(r"--custom-tlv (\S+) '(.*)'", config["CONFIG_MCUBOOT_EXTRA_IMGTOOL_ARGS"])
        command += ["--custom-tlv", mark[1], mark[2]]
        subprocess.run(command + [self.build / "zephyr" / "zephyr.bin", out], check=True)
        return out


def make_flash(path, boot, image):
    """MCUboot and an image in slot 0; the rest erased, which reads as ones."""
    flash = bytearray(b"\xff" * 0x100000) + bytearray(15 << 20)
    for at, file in ((0, boot), (SLOT0, image)):
        data = file.read_bytes()
        flash[at : at + len(data)] = data
    path.write_bytes(flash)


class Machine:
    """A QEMU."""

    def __init__(self, role, flash, line, dir, over_voltage_ms=0):
        self.role, self.flash, self.log = role, flash, dir / f"{role}.log"
        uid = dir / f"{role}.uid"
        # What zephyr-shell/c/sim.c plays stands behind the id.
        uid.write_bytes((UIDS[role] | over_voltage_ms << 64).to_bytes(16, "little"))
        # Console, bus, and the master's line for clients.
        lines = ["-serial", f"file:{self.log}", "-chardev"]
        lines += [f"socket,id=bus,path={line}", "-serial", "chardev:bus"]
        if role == "master":
            lines += ["-serial", "pty"]
        lines += ["-device", f"loader,file={uid},addr=0x203ffff0,force-raw=on"]
        command = [REPO / "tools" / "qemu-mps2", "-", flash, *lines]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=urgent
        )
        self.pty = None
        while role == "master" and self.pty is None:
            line = self.process.stdout.readline()
            assert line, f"QEMU ended: {self.process.wait()}"
            found = re.search(r"redirected to (/dev/\S+)", line)
            self.pty = found and found[1]

    def console(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Plant:
    """Hub, master and slave, and the program to talk to them."""

    def __init__(self, master, slave, dir, helio):
        self.helio, self.dir = helio, dir
        # Not TCP: QEMU sends each character by itself, and Nagle's algorithm keeps it back.
        self.line = line = dir / "line"
        self.hub = subprocess.Popen(
            [helio, "hub", "--json", "--listen", line], stdout=subprocess.PIPE, text=True, preexec_fn=urgent
        )
        self.hub.stdout.readline()
        self.images = {"master": Image(master, dir), "slave": Image(slave, dir)}
        self.machines = {}
        for role, image in self.images.items():
            flash = dir / f"{role}.flash"
            boot = image.build.parent / "mcuboot" / "zephyr" / "zephyr.bin"
            make_flash(flash, boot, image.build / "zephyr" / "zephyr.signed.bin")
            self.machines[role] = Machine(role, flash, line, dir)
        self.pty = self.machines["master"].pty

    def run(self, *args):
        """`helio fw ...`, whatever comes of it."""
        command = [self.helio, "fw", *args, "--serial", self.pty]
        return subprocess.run(command, capture_output=True, text=True)

    def fw(self, *args):
        """`helio fw ... --json`, which must succeed; asked again while a busy host has cost the slave its seat.

        A request to a seat that is empty goes nowhere, and an upload goes on where it broke off.
        """
        for more in reversed(range(6)):
            done = self.run(*args, "--json")
            lost = any(why in done.stderr for why in ("is not there", "no answer from slave"))
            if done.returncode == 0 or not lost or not more:
                break
            print(f"\n{args[0]}: the slave has lost its seat, back after {self.joined():.1f} s", end="")
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}\n{self.consoles()}"
        return json.loads(done.stdout)

    def joined(self, seconds=60):
        """Waits until the slave has a seat; how long that took."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            done = self.run("list", "--target", "slave:1", "--timeout", "3")
            if done.returncode == 0:
                return time.monotonic() - start
            time.sleep(0.5)
        raise AssertionError(f"the slave has not joined:\n{done.stderr}{self.consoles()}")

    def flip(self, role, offset, bit=0):
        """Turns a bit of the second slot round, behind everybody's back."""
        with open(self.machines[role].flash, "r+b") as flash:
            flash.seek(SLOT1 + offset)
            octet = flash.read(1)[0]
            flash.seek(SLOT1 + offset)
            flash.write(bytes([octet ^ (1 << bit)]))

    def power_cycle(self, role, **faults):
        """Off and on again, with what is in flash."""
        machine = self.machines[role]
        machine.stop()
        self.machines[role] = Machine(role, machine.flash, self.line, self.dir, **faults)
        self.pty = self.machines["master"].pty
        self.joined()

    def consoles(self):
        return "".join(f"--- {r}\n{m.console()}" for r, m in self.machines.items())

    def stop(self):
        for machine in self.machines.values():
            machine.stop()
        self.hub.terminate()
        self.hub.wait(10)
