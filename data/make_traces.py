"""Makes the recorded cell traces in data/traces: what a tester would have logged, with the truth beside it.

A PyBaMM single-particle model with electrolyte (SPMe) of the LG M50 21700 cell (parameter set
of O'Regan et al. 2022, temperature dependent, lumped thermal) is driven by real drive cycles;
one recording comes from the full model (DFN: Doyle, Fuller, Newman). Two more are About:Energy's cells by the full
model, with the parameters of their BPX files, which are looked for in ../shared/data/battery/about-energy.

    python -m venv ~/heliograph-data
    ~/heliograph-data/bin/pip install -r data/requirements.txt
    ~/heliograph-data/bin/python data/make_traces.py            # all, about 10 minutes
    ~/heliograph-data/bin/python data/make_traces.py us06_0c    # some

Columns and origin: data/README.md.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pybamm

TRACES = Path(__file__).parent / "traces"
ABOUT_ENERGY = Path(__file__).parents[1] / "../shared/data/battery/about-energy"

# Current releases of PyBaMM carry no drive cycles; this older one (BSD-3-Clause) does.
CYCLES_FROM = "pybamm==23.5"
SHA256 = {
    "US06": "5909eb2ec7983fae86a050ff3b35a2041d0ab698710a6b0f95d5816e348077ba",
    "UDDS": "9fe6558c17aad3cc08109186923aeb7459cd3097a381c44e854bf22dd12a5a2a",
}

# Cycle, factor on its current, state of charge at which the recording stops.
TEST = ("US06", 1.5, 0.18)
FIT = ("UDDS", 2.0, 0.10)
START_SOC = 0.90
# Charging current allowed by ambient temperature [A]: a vehicle limits its braking so in the cold.
REGEN_A = {40: 10.0, 25: 10.0, 10: 5.0, 0: 2.5, -10: 1.0}

# Name -> cycle, temperature [°C], model.
RUNS = {f"us06_{t}c": (TEST, t, "SPMe") for t in (40, 25, 10, 0, -10)}
RUNS |= {"us06_dfn_25c": (TEST, 25, "DFN")}
RUNS |= {f"udds_{t}c": (FIT, t, "SPMe") for t in (40, 25, 0, -10)}
RUNS |= {f"ocv_{t}c": (None, t, "SPMe") for t in (40, 25, 0)}

# Trace -> parameter file, from full to almost empty at 25 °C by UDDS x 2 of the same C-rate.
BPX = {
    "nmc_pouch_udds_25c": "NMC/nmc_pouch_cell_BPX.json",
    "lfp_18650_udds_25c": "LFP/lfp_18650_cell_BPX.json",
}
BPX_START_SOC, BPX_STOP_SOC = 0.92, 0.08


def cell(ambient_c):
    """Parameters of the cell in a chamber, and its capacity [Ah]. Empty is 2.5 V and full 4.2 V at
    rest and 25 °C, as in the maker's data sheet (the parameter set itself goes up to 4.4 V)."""
    values = pybamm.ParameterValues("ORegan2022")
    values.update({
        "Open-circuit voltage at 0% SOC [V]": 2.5,
        "Open-circuit voltage at 100% SOC [V]": 4.2,
        "Lower voltage cut-off [V]": 2.5,
        "Upper voltage cut-off [V]": 4.3,
    })
    x0, x100, _, _ = pybamm.lithium_ion.get_min_max_stoichiometries(values)
    capacity_ah = (x100 - x0) * values.evaluate(pybamm.LithiumIonParameters().n.Q_init)
    values.update({
        "Ambient temperature [K]": 273.15 + ambient_c,
        "Initial temperature [K]": 273.15 + ambient_c,
    })
    return values, capacity_ah


def model(kind="SPMe"):
    return getattr(pybamm.lithium_ion, kind)({"thermal": "lumped"})


def drive(cycle_a, factor, stop_soc, ambient_c, kind):
    """Repeats a cycle of 1 Hz until the cell is at `stop_soc` or at its voltage limit."""
    values, capacity_ah = cell(ambient_c)
    cycle_a = np.maximum(cycle_a * factor, -REGEN_A[ambient_c])
    return follow(values, model(kind), cycle_a, START_SOC, stop_soc, capacity_ah)


def follow(values, cell_model, cycle_a, start_soc, stop_soc, capacity_ah):
    """Repeats a current of 1 Hz from one state of charge to another, or until the voltage limit."""
    repeats = np.ceil((start_soc - stop_soc) * capacity_ah * 3600 / cycle_a.sum())
    current = np.tile(cycle_a, int(repeats))
    t = np.arange(len(current), dtype=float)
    values["Current function [A]"] = pybamm.Interpolant(t, current, pybamm.t)
    solver = pybamm.IDAKLUSolver(rtol=1e-6, atol=1e-6)
    simulation = pybamm.Simulation(cell_model, parameter_values=values, solver=solver)
    solution = simulation.solve(t_eval=[0, t[-1]], t_interp=t, initial_soc=start_soc)
    rows = table(solution, t[t <= solution.t[-1]], start_soc, capacity_ah)
    return rows[rows[:, 4] >= stop_soc]


def bpx_drive(cycle_a, path):
    """The drive of the fit, scaled by capacity, on a cell of a BPX file: full model, isothermal at 25 °C."""
    values = pybamm.ParameterValues.create_from_bpx(path)
    x0, x100, _, _ = pybamm.lithium_ion.get_min_max_stoichiometries(values)
    capacity_ah = (x100 - x0) * values.evaluate(pybamm.LithiumIonParameters().n.Q_init)
    cycle_a = np.maximum(cycle_a * FIT[1] * capacity_ah / 4.967, -2.0 * capacity_ah)
    values.update({
        # A drive may leave the window for a moment.
        "Upper voltage cut-off [V]": values["Upper voltage cut-off [V]"] + 0.3,
        "Lower voltage cut-off [V]": values["Lower voltage cut-off [V]"] - 0.2,
    })
    full = pybamm.lithium_ion.DFN({"thermal": "isothermal"})
    return follow(values, full, cycle_a, BPX_START_SOC, BPX_STOP_SOC, capacity_ah)


def open_circuit(ambient_c):
    """C/30 from full to empty, two hours of rest, C/30 back to full."""
    values, capacity_ah = cell(ambient_c)
    experiment = pybamm.Experiment(
        ["Discharge at C/30 until 2.5 V", "Rest for 2 hours", "Charge at C/30 until 4.2 V"], period="2 minutes"
    )
    simulation = pybamm.Simulation(model(), parameter_values=values, experiment=experiment)
    solution = simulation.solve(initial_soc=1.0)
    return table(solution, np.arange(0, solution.t[-1], 120.0), 1.0, capacity_ah)


def table(solution, t, soc, capacity_ah):
    """time, current, voltage, temperature, state of charge; the last from the charge that has passed."""
    names = ["Current [A]", "Voltage [V]", "Volume-averaged cell temperature [C]", "Discharge capacity [A.h]"]
    current, voltage, temperature, discharged_ah = (solution[name](t) for name in names)
    return np.column_stack([t, current, voltage, temperature, soc - discharged_ah / capacity_ah])


def drive_cycles():
    """Name -> current at 1 Hz [A], read from the pinned wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        pip += ["--python-version=3.11", "--platform=manylinux2014_x86_64", "--dest", folder, CYCLES_FROM]
        subprocess.run(pip, check=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        cycles = {}
        for name, digest in SHA256.items():
            raw = wheel.read(f"pybamm/input/drive_cycles/{name}.csv")
            if hashlib.sha256(raw).hexdigest() != digest:
                sys.exit(f"{name}.csv in {CYCLES_FROM} is not the file these traces were made from")
            # The last row repeats the first; without it cycles join.
            cycles[name] = np.loadtxt(raw.decode().splitlines(), delimiter=",")[:-1, 1]
    return cycles


def main():
    wanted = sys.argv[1:] or [*RUNS, *BPX]
    unknown = set(wanted) - set(RUNS) - set(BPX)
    if unknown:
        sys.exit(f"no run is called {', '.join(sorted(unknown))}; there are {', '.join([*RUNS, *BPX])}")
    TRACES.mkdir(exist_ok=True)
    cycles = drive_cycles()
    for name in wanted:
        if name in BPX:
            rows = bpx_drive(cycles[FIT[0]], ABOUT_ENERGY / BPX[name])
            path = TRACES / f"{name}.csv"
        else:
            run, ambient_c, kind = RUNS[name]
            if run is None:
                rows = open_circuit(ambient_c)
            else:
                cycle, factor, stop_soc = run
                rows = drive(cycles[cycle], factor, stop_soc, ambient_c, kind)
            path = TRACES / f"lgm50_{name}.csv"
        np.savetxt(path, rows, delimiter=",", fmt=["%d", "%.3f", "%.4f", "%.2f", "%.5f"], comments="",
                   header="time_s,current_a,voltage_v,temperature_c,soc")
        print(f"{path.name}: {len(rows)} rows, {path.stat().st_size // 1000} kB, "
              f"{rows[:, 2].min():.3f} to {rows[:, 2].max():.3f} V, "
              f"{rows[:, 3].min():.1f} to {rows[:, 3].max():.1f} °C, soc down to {rows[:, 4].min():.3f}", flush=True)


if __name__ == "__main__":
    main()
