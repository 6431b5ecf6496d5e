"""Makes the lives of cells in data/ageing: partial cycles with rests while the cell ages, its true capacity beside them.

PyBaMM's SPMe of the LG M50 with the ageing mechanisms of O'Kane et al. 2022, each made faster so that a life fits into
100 partial cycles. No cycle is a full one; how far it goes is drawn anew each time. The true capacity is that of the
electrodes as they are (charge between 4.2 V and 2.5 V at rest), computed after every cycle, not by a test.

    ~/heliograph-data/bin/python data/make_ageing.py            # all, about 15 minutes
    ~/heliograph-data/bin/python data/make_ageing.py sei ocv_25c  # some

Columns and origin: data/README.md.
"""

import sys
from pathlib import Path

import numpy as np
import pybamm

AGEING = Path(__file__).parent / "ageing"
CYCLES = 100
START_SOC = 0.45

# Life: temperature [°C], seed, and factors on the rates of the parameter set (loss of active material: rates per second).
LIVES = {
    "sei": (25, 11, {"sei": 250.0}),
    "lam": (25, 12, {"sei": 20.0, "lam_negative": 1.2e-5, "lam_positive": 1.2e-5}),
    "plating": (10, 13, {"sei": 20.0, "plating": 0.04}),
    "mixed": (20, 14, {"sei": 60.0, "plating": 0.015, "lam_negative": 4e-6, "lam_positive": 6e-6}),
}
# After each step's start, then every eight minutes: a sampling that a step of constant current is followed by.
SAMPLES_S = [1.0, 10.0, 60.0, 240.0]
PERIOD_S = 480.0
# Near empty the voltage falls fast.
LOW_PERIOD_S, LOW_V = 60.0, 3.35
FULL_V, EMPTY_V = 4.18, 2.9
COLUMNS = ["Current [A]", "Voltage [V]", "Volume-averaged cell temperature [C]", "Negative electrode stoichiometry"]


def cell(ambient_c, factors):
    values = pybamm.ParameterValues("OKane2022")
    kelvin = 273.15 + ambient_c
    values.update({"Ambient temperature [K]": kelvin, "Initial temperature [K]": kelvin})
    for name, key in [
        ("SEI solvent diffusivity [m2.s-1]", "sei"),
        ("Lithium plating kinetic rate constant [m.s-1]", "plating"),
    ]:
        values[name] = values[name] * factors.get(key, 0.0)
    for name, key in [("Negative", "lam_negative"), ("Positive", "lam_positive")]:
        values[f"{name} electrode LAM constant proportional term [s-1]"] = factors.get(key, 0.0)
    options = {"thermal": "lumped", "SEI": "solvent-diffusion limited"}
    if "plating" in factors:
        options["lithium plating"] = "irreversible"
    if "lam_negative" in factors:
        options |= {"particle mechanics": "swelling only", "loss of active material": "stress-driven"}
    return values, pybamm.lithium_ion.SPMe(options)


def partial_cycle(rng, at, nominal_ah):
    """Charge, rest, discharge in blocks, rest; from `at` (share of the nominal capacity), as (A, hours)."""
    high, low = rng.uniform(0.65, 1.0), rng.uniform(0.08, 0.45)
    charge_c, blocks_c, rests_h = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.9, size=4), rng.uniform(0.75, 1.5, size=2)
    steps = [(-charge_c * nominal_ah, max(high - at, 0.02) / charge_c), (0.0, rests_h[0])]
    steps += [(c * nominal_ah, (high - low) / 4 / c) for c in blocks_c]
    return [*steps, (0.0, rests_h[1])]


class Bench:
    """A cell on a tester: one current after the other, each until its time is over or a sample is beyond a voltage limit."""

    def __init__(self, values, model, soc):
        values = values.copy()
        values.update({"Current function [A]": "[input]", "Lower voltage cut-off [V]": 2.0, "Upper voltage cut-off [V]": 4.5})
        solver = pybamm.IDAKLUSolver(rtol=1e-6, atol=1e-6)
        self.simulation = pybamm.Simulation(model, parameter_values=values, solver=solver)
        self.simulation.build(initial_soc=soc, inputs={"Current function [A]": 0.0})
        self.electrodes = pybamm.lithium_ion.ElectrodeSOHSolver(values_of_limits(values))
        self.solution = None

    def step(self, amps, hours):
        """Rows of time [s], current, voltage, temperature, negative stoichiometry."""
        seconds = max(round(hours * 3600), 60)
        rows, done_s, low = [], 0.0, False
        while done_s < seconds:
            later = [m for m in SAMPLES_S if m > done_s]
            mark = min(later[0] if later else done_s + (LOW_PERIOD_S if low else PERIOD_S), seconds)
            self.solution = self.simulation.step(
                mark - done_s, inputs={"Current function [A]": amps}, starting_solution=self.solution, save=False
            ).last_state
            done_s = mark
            row = [float(np.ravel(self.solution[name].entries)[-1]) for name in COLUMNS]
            rows.append([self.solution.t[-1], *row])
            low = amps > 0 and row[1] < LOW_V
            if (amps < 0 and row[1] > FULL_V) or (amps > 0 and row[1] < EMPTY_V):
                break
        return np.array(rows)

    def truth(self):
        """x0, x100 and capacity of the electrodes as they are now."""
        names = {
            "Q_n": "Negative electrode capacity [A.h]",
            "Q_p": "Positive electrode capacity [A.h]",
            "Q_Li": "Total lithium capacity in particles [A.h]",
        }
        now = {key: float(np.atleast_1d(self.solution[name].entries)[-1]) for key, name in names.items()}
        found = self.electrodes.solve(now)
        return float(found["x_0"]), float(found["x_100"]), now["Q_n"] * float(found["x_100"] - found["x_0"])


def values_of_limits(values):
    limits = values.copy()
    limits.update({"Lower voltage cut-off [V]": 2.5, "Upper voltage cut-off [V]": 4.2})
    return limits


def live(life):
    ambient_c, seed, factors = LIVES[life]
    values, model = cell(ambient_c, factors)
    rng = np.random.default_rng(seed)
    nominal_ah = values["Nominal cell capacity [A.h]"]
    bench, at, table = Bench(values, model, START_SOC), START_SOC, []
    for cycle in range(CYCLES):
        parts = [bench.step(*step) for step in partial_cycle(rng, at, nominal_ah)]
        x0, x100, capacity_ah = bench.truth()
        part = np.vstack(parts)
        soc = (part[:, 4] - x0) / (x100 - x0)
        table.append(np.column_stack([part[:, :4], soc, np.full(len(part), capacity_ah)]))
        at = soc[-1] * capacity_ah / nominal_ah
        if cycle % 10 == 9:
            print(f"{life}: {cycle + 1} cycles, {capacity_ah:.3f} Ah", flush=True)
    return np.vstack(table)


def fresh(kind):
    """The cell before its life: a slow test, and pulses of 20 s."""
    values, model = cell(25, {})
    values = values_of_limits(values)
    x0, x100, _, _ = pybamm.lithium_ion.get_min_max_stoichiometries(values)
    if kind == "ocv_25c":
        steps = ["Discharge at C/30 until 2.5 V", "Rest for 2 hours", "Charge at C/30 until 4.2 V"]
        simulation = pybamm.Simulation(model, parameter_values=values, experiment=pybamm.Experiment(steps))
        solution, period = simulation.solve(initial_soc=1.0), 240.0
    else:
        pulses = np.repeat(np.random.default_rng(7).uniform(-0.4, 1.4, size=280) * 5.0, 20)
        pulses[:120] = 0.0
        values.update({"Lower voltage cut-off [V]": 2.0, "Upper voltage cut-off [V]": 4.5})
        t = np.arange(len(pulses), dtype=float)
        values["Current function [A]"] = pybamm.Interpolant(t, pulses, pybamm.t)
        simulation = pybamm.Simulation(model, parameter_values=values, solver=pybamm.IDAKLUSolver(rtol=1e-6, atol=1e-6))
        solution, period = simulation.solve(t_eval=[0, t[-1]], t_interp=t, initial_soc=0.93), 2.0
    t = np.arange(0.0, solution.t[-1], period)
    current, voltage, temperature, x = (solution[name](t) for name in COLUMNS)
    return np.column_stack([t, current, voltage, temperature, (x - x0) / (x100 - x0)])


def main():
    every = ["ocv_25c", "pulses_25c", *LIVES]
    wanted = sys.argv[1:] or every
    if unknown := set(wanted) - set(every):
        sys.exit(f"no life is called {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    AGEING.mkdir(exist_ok=True)
    for name in wanted:
        table = live(name) if name in LIVES else fresh(name)
        path = AGEING / f"lgm50_{'life_' * (name in LIVES)}{name}.csv"
        header = "time_s,current_a,voltage_v,temperature_c,soc" + (",capacity_ah" if table.shape[1] == 6 else "")
        formats = ["%.0f", "%.3f", "%.4f", "%.1f", "%.4f", "%.4f"][: table.shape[1]]
        np.savetxt(path, table, delimiter=",", fmt=formats, comments="", header=header)
        print(f"{path.name}: {len(table)} rows, {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
