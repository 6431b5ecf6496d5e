# SPDX-License-Identifier: Apache-2.0
"""Cortex-M4F alone in QEMU, its time counted in instructions: drivers, and the way from sample to gate."""

import pathlib
import re
import subprocess

import pytest


@pytest.fixture(scope="module")
def run(request):
    build = pathlib.Path(request.config.getoption("--build-dir"))

    def run(name, until, seconds=120):
        """What an image says until that."""
        image = build / name / "zephyr" / "zephyr.elf"
        assert image.exists(), f"{image} was not built"
        command = "qemu-system-arm -machine mps2-an386 -cpu cortex-m4 -display none -monitor none -serial stdio"
        command += " -icount shift=6,align=off,sleep=off -kernel"
        qemu = subprocess.Popen(
            [*command.split(), str(image)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = []
        try:
            for line in qemu.stdout:
                said.append(line)
                if re.search(until, line):
                    break
        finally:
            qemu.kill()
            qemu.wait()
        return "".join(said)

    return run


@pytest.mark.parametrize("image", ["drivers_rs485", "drivers_can"])
def test_drivers_do_as_on_native_sim(run, image):
    said = run(image, "PROJECT EXECUTION")
    assert "PROJECT EXECUTION SUCCESSFUL" in said, said[-4_000:]
    assert len(re.findall(r"^ PASS - ", said, re.M)) >= 20


def test_the_gate_opens_within_48000_instructions_of_the_sample(run):
    said = run("latency", "latency: (worst|the|an)")
    print(said[-3_000:])
    worst = re.search(r"latency: worst (\d+) instructions \(.*, (\d+) ways to trip\)", said)
    assert worst, said[-4_000:]
    # None at all would be a clock that stands still.
    assert 1_000 < int(worst[1]) <= 48_000
    assert int(worst[2]) >= 40, "most faults did not trip"
