# SPDX-License-Identifier: Apache-2.0
import os
import shutil
from pathlib import Path

import pytest
from qemu import Plant, find_helio


def builds(request):
    """Of twister's build, which has both images, or of two builds that the environment names."""
    named = [os.environ.get(f"HELIO_{role}_BUILD") for role in ("MASTER", "SLAVE")]
    if all(named):
        return [Path(b) / f"app-{role}" for b, role in zip(named, ("master", "slave"))]
    build = request.config.getoption("--build-dir", None)
    if build is None:
        pytest.skip("set HELIO_MASTER_BUILD and HELIO_SLAVE_BUILD to builds for mps2/an386 with --sysbuild")
    return [Path(build) / role / f"app-{role}" for role in ("master", "slave")]


@pytest.fixture(scope="module")
def plant(request, tmp_path_factory):
    helio = find_helio()
    if helio is None:
        pytest.skip("no helio: cargo build -p helio, or set HELIO")
    for program in ("qemu-system-arm", "imgtool"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    plant = Plant(*builds(request), tmp_path_factory.mktemp("plant"), helio)
    try:
        plant.joined()
        yield plant
    finally:
        plant.stop()
