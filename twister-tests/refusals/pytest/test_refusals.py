# SPDX-License-Identifier: Apache-2.0
"""A devicetree or a configuration that lacks something stops the build with a sentence that says what
to add."""

import pathlib
import re
import subprocess

import pytest

APP = pathlib.Path(__file__).resolve().parents[1]
ROOT = APP.parents[1]

CASES = {
    "no_node": (
        "node.c",
        "/delete-node/ &heliograph;",
        "",
        'The devicetree has no node with compatible = \\"heliograph,node\\". Add one',
    ),
    "rs485_on_a_can_controller": (
        "rs485.c",
        "&heliograph { bus = <&controller>; };",
        "",
        "`bus` of the heliograph,node is no UART. Point it to",
    ),
    "can_on_a_uart": (
        "can.c",
        "",
        "CONFIG_HELIO_BUS_CAN=y",
        "`bus` of the heliograph,node is a UART. Point it to a CAN controller",
    ),
    "a_second_bus_of_another_kind": (
        "rs485.c",
        "&heliograph { bus = <&line>, <&controller>; };",
        "",
        "`bus` of the heliograph,node is no UART. Point it to",
    ),
    "two_buses_with_one_driver": (
        "rs485.c",
        "#include <zephyr/dt-bindings/gpio/gpio.h>\n"
        "&heliograph { bus = <&line>, <&line>; driver-enable-gpios = <&gpio0 0 GPIO_ACTIVE_HIGH>; };",
        "",
        "another number of `driver-enable-gpios` than of `bus`: name one for each bus",
    ),
    "clients_without_a_line": (
        "northbound.c",
        "",
        "CONFIG_HELIO_NORTHBOUND=y",
        "the heliograph,node has no `northbound`. Point it to",
    ),
    "adc_without_a_channel": (
        "adc.c",
        "",
        "CONFIG_HELIO_ADC=y",
        "the heliograph,node has no `io-channels`. Name the ADC channel",
    ),
    "cell_monitor_that_nobody_names": (
        "i2c.c",
        "&i2c0 { bq76952@8 { compatible = \"ti,bq76952\"; reg = <8>; }; };",
        "CONFIG_HELIO_CELLS_SIMULATED=n",
        "the heliograph,node has no `cell-monitor`. Point it to a ti,bq76952",
    ),
}


SECOND_LINE = """
/ { second: second { compatible = "zephyr,native-tty-uart"; status = "okay"; current-speed = <1000000>; }; };
&heliograph { bus = <&rs485>, <&second>; };
"""

# Firmware that cannot have the buses that the node names.
FIRMWARES = {
    "slave_with_two_buses": (
        "app-slave",
        SECOND_LINE,
        "",
        "a slave has one bus: let `bus` of the heliograph,node name one",
    ),
    "rs485_seats_without_memory": (
        "app-master",
        SECOND_LINE,
        "CONFIG_HELIO_BUS_SEATS=17",
        "CONFIG_HELIO_MASTER_SEATS is less than CONFIG_HELIO_BUS_SEATS for each RS485 bus",
    ),
}


def configure(into, app, overlay, conf):
    (into / "case.overlay").write_text(overlay + "\n")
    (into / "case.conf").write_text(conf + "\n")
    return run("cmake", "-GNinja", "-S", app, "-B", into / "build", "-DBOARD=native_sim/native/64",
               f"-DEXTRA_DTC_OVERLAY_FILE={into / 'case.overlay'}",
               f"-DEXTRA_CONF_FILE={into / 'case.conf'}")  # fmt: skip


def build(into, source, overlay, conf):
    """What the compiler says of one file of the C half."""
    code, said = configure(into, APP, overlay, conf)
    if code != 0:
        return code, said
    # The one file, and the generated headers that it needs: quicker than everything.
    code, targets = run("ninja", "-C", into / "build", "-t", "targets", "all")
    file = re.search(rf"^(\S*zephyr-shell\S*/{re.escape(source)}\.obj):", targets, re.M)
    assert file, f"{source} is not built at all"
    return run("ninja", "-C", into / "build", file[1])


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_the_build_says_what_is_missing(name, tmp_path):
    source, overlay, conf, sentence = CASES[name]
    code, said = build(tmp_path, source, overlay, conf)
    assert code != 0, "it was built"
    # A sentence may be broken by the compiler's own marks, never in its words.
    assert sentence.replace("\\", "") in said.replace("\\", ""), said[-3_000:]


@pytest.mark.parametrize("name", FIRMWARES)
def test_the_build_of_a_firmware_says_what_cannot_be(name, tmp_path):
    app, overlay, conf, sentence = FIRMWARES[name]
    code, said = configure(tmp_path, ROOT / app, overlay, conf)
    assert code == 0, said[-3_000:]
    code, said = run("ninja", "-C", tmp_path / "build", "librustapp")
    assert code != 0, "it was built"
    assert sentence in said, said[-3_000:]


def test_a_complete_node_is_built(tmp_path):
    code, said = build(tmp_path, "node.c", "", "")
    assert code == 0, said[-3_000:]
