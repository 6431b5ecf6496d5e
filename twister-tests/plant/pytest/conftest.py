# SPDX-License-Identifier: Apache-2.0
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--bus", default="rs485", choices=["rs485", "can"])


@pytest.fixture(scope="session")
def images(request):
    """Where sysbuild has put each firmware; `emulated` when it is for QEMU."""
    build = pathlib.Path(request.config.getoption("--build-dir"))
    found = {}
    for name in "master", "slave", "chip":
        zephyr = build / name / "zephyr"
        for image in zephyr / "zephyr.exe", zephyr / "zephyr.elf":
            if image.exists():
                found[name] = image
                break
    assert {"master", "slave"} <= set(found), f"no firmwares under {build}"
    return found


@pytest.fixture(scope="session")
def emulated(images):
    return images["slave"].suffix == ".elf"
