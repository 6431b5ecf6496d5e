# SPDX-License-Identifier: Apache-2.0
"""An update of a master and, through it, of a slave: real code, real boot loader, emulated cores."""

import json
import runpy
import shutil
import subprocess
import time

import pytest
from qemu import REPO

BOTH = pytest.mark.parametrize("role,target", [("master", "master"), ("slave", "slave:1")])


def running(report):
    """Version and state of the slot that runs."""
    slot = next(s for s in report["slots"] if s["active"])
    return slot["version"], "confirmed" if slot["confirmed"] else "on trial"


def upload(plant, role, target, version):
    sent = plant.fw("upload", str(plant.images[role].signed(version)), "--target", target)
    print(f"\n{target}: {version}, {sent['sent_bytes']} bytes at {sent['rate_kbyte_s']:.1f} kB/s", end="")
    return sent


def reset(plant, target):
    back = plant.fw("reset", "--target", target)
    print(f"\n{target}: back after {back['back_after_s']:.1f} s, {running(back)}", end="")
    return back


def rejoined(plant, target):
    """A master that has started anew has to find its slaves again."""
    if target == "master":
        print(f"\nslave is back on the bus {plant.joined():.1f} s later", end="")


@pytest.mark.parametrize("role", ["master", "slave"])
def test_an_image_has_room_in_small_chips(plant, role):
    """With MCUboot and SMP; a master with all 32 seats."""
    boards = runpy.run_path(str(REPO / "tools" / "boards"))
    elf = plant.images[role].build / "zephyr" / "zephyr.elf"
    flash, ram = boards["sizes"](elf)
    print(f"\n{role}: {flash} bytes of flash, {ram} bytes of RAM", end="")
    assert flash <= boards["ROOM"][role][0] * 1024
    assert ram <= boards["ROOM"][role][1] * 1024
    if role == "master":
        assert not boards["laid_out"](elf)


@BOTH
def test_an_image_that_is_not_confirmed_is_reverted(plant, role, target):
    before = running(plant.fw("list", "--target", target))
    upload(plant, role, target, "0.2.0")
    plant.fw("test", "--target", target)
    assert running(reset(plant, target)) == ("0.2.0", "on trial")
    assert running(reset(plant, target)) == before
    rejoined(plant, target)


@BOTH
def test_an_image_with_one_flipped_bit_is_refused_by_the_boot_loader(plant, role, target):
    before = running(plant.fw("list", "--target", target))
    upload(plant, role, target, "0.3.0")
    plant.fw("test", "--target", target)
    plant.flip(role, 0x5432, bit=3)
    assert running(reset(plant, target)) == before
    rejoined(plant, target)


@BOTH
def test_a_file_with_one_flipped_bit_is_refused_before_it_is_sent(plant, role, target):
    whole = bytearray(plant.images[role].signed("0.3.1").read_bytes())
    whole[len(whole) // 2] ^= 8
    file = plant.dir / "flipped.bin"
    file.write_bytes(whole)
    done = plant.run("upload", str(file), "--target", target)
    assert done.returncode == 2 and "damaged" in done.stderr, done


def test_the_other_roles_image_is_refused_before_it_is_sent(plant):
    file = plant.images["master"].build / "zephyr" / "zephyr.signed.bin"
    done = plant.run("upload", str(file), "--target", "slave:1")
    assert done.returncode == 2 and "for a master" in done.stderr, done


@BOTH
def test_an_image_that_is_confirmed_stays(plant, role, target):
    upload(plant, role, target, "0.4.0")
    plant.fw("test", "--target", target)
    assert running(reset(plant, target)) == ("0.4.0", "on trial")
    rejoined(plant, target)
    plant.fw("confirm", "--target", target)
    assert running(reset(plant, target)) == ("0.4.0", "confirmed")
    rejoined(plant, target)


def test_a_client_that_nobody_here_wrote_updates_the_master(plant):
    if shutil.which("smpmgr") is None:
        pytest.skip("no smpmgr: pip install smpmgr")
    file = plant.images["master"].signed("0.5.0")

    def smpmgr(*args):
        command = ["smpmgr", "--port", plant.pty, "--timeout", "10", *args]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done
        return done.stdout

    smpmgr("image", "upload", str(file))
    slots = plant.fw("list")["slots"]
    new = next(s for s in slots if s["version"] == "0.5.0")
    smpmgr("image", "state-write", new["hash"])
    smpmgr("os", "reset")
    # The answer goes out first, the reset comes 2.5 s later.
    for _ in range(60):
        time.sleep(0.5)
        done = plant.run("list", "--json", "--timeout", "1")
        if done.returncode == 0 and running(json.loads(done.stdout))[0] == "0.5.0":
            break
    assert running(plant.fw("list")) == ("0.5.0", "on trial")
    smpmgr("image", "state-write", "--confirm")
    assert running(plant.fw("list")) == ("0.5.0", "confirmed")
    rejoined(plant, "master")
