"""Fits the cell files in data/cells: an open-circuit curve and a two-RC circuit over temperature and state of charge.

    python data/fit_cell.py lg-m50 data/traces
    python data/fit_cell.py a123-lfp-26650 ../shared/data/battery/a123-lfp
    python data/fit_cell.py nmc-pouch ../shared/data/battery/about-energy/NMC
    python data/fit_cell.py lfp-18650 ../shared/data/battery/about-energy/LFP

What is fitted on what, and tested on what: data/README.md. Each run writes one file and prints the
voltage that the model leaves over on every recording, fitted and unseen, and what a plain extended
Kalman filter on the same model makes of the unseen ones: the mark for a better filter.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

SOC = np.linspace(0.0, 1.0, 101)
# Weight of "neighbours in the grid are alike", as volts per e-fold between them. It decides only where
# the recordings say nothing.
SMOOTH_V = 0.02


@dataclass
class Trace:
    """A recording; discharge is positive, `soc` is the truth."""

    name: str
    t: np.ndarray
    i: np.ndarray
    v: np.ndarray
    temp: np.ndarray
    soc: np.ndarray

    def every(self, seconds):
        """Thinned to one row per so many seconds."""
        keep = np.searchsorted(self.t, np.arange(self.t[0], self.t[-1], seconds))
        return Trace(self.name, *(column[keep] for column in (self.t, self.i, self.v, self.temp, self.soc)))

    def mean_current(self):
        """From each row to the next."""
        return 0.5 * (self.i[1:] + self.i[:-1])


@dataclass
class Cell:
    """As in the cell file but in ohms and volts; tables have one row per temperature, one column per soc."""

    name: str
    chemistry: str
    capacity_ah: float
    ocv: np.ndarray
    temps: np.ndarray
    socs: np.ndarray
    ocv_per_k: np.ndarray = field(default_factory=lambda: np.zeros(101))
    hysteresis: np.ndarray | None = None
    hysteresis_rate: float = 30.0
    r: np.ndarray | None = None  # r0, r1, r2: [3, temperature, soc]
    tau: np.ndarray | None = None  # tau1, tau2: [2, temperature]
    sigma: float = 0.005

    def open_circuit(self, soc, temp):
        return np.interp(soc, SOC, self.ocv) + (temp - 25.0) * np.interp(soc, SOC, self.ocv_per_k)

    def settled(self, trace):
        """What the terminals would show without the circuit: open circuit and hysteresis."""
        v = self.open_circuit(trace.soc, trace.temp)
        if self.hysteresis is None:
            return v
        m = np.einsum("kt,ts,ks->k", weights(trace.temp, self.temps), self.hysteresis, weights(trace.soc, self.socs))
        i = trace.mean_current()
        fade = np.exp(-self.hysteresis_rate * np.abs(i) * np.diff(trace.t) / 3600 / self.capacity_ah)
        h = np.zeros(len(v))
        for k in range(len(i)):
            h[k + 1] = fade[k] * h[k] - (1 - fade[k]) * np.sign(i[k])
        return v + m * h


def weights(x, knots):
    """Linear interpolation as a matrix from `knots` to `x`; beyond the knots the edge value holds."""
    return np.stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))], axis=-1)


def circuit(r, tau, cell, trace):
    """Voltage lost in the circuit, for a batch of parameters: r [n, 3, temperature, soc], tau [n, 2, temperature].
    Linear in soc, geometric in temperature; current changes linearly between rows."""
    by_temp, by_soc = weights(trace.temp, cell.temps), weights(trace.soc, cell.socs)

    def along(table):
        return np.exp(np.einsum("nkt,kt->nk", np.log(table), by_temp))

    r0, r1, r2 = (along(np.einsum("nts,ks->nkt", r[:, j], by_soc)) for j in range(3))
    dt, i = np.diff(trace.t), trace.mean_current()
    log_tau = np.einsum("njt,kt->njk", np.log(tau), by_temp[:-1])
    fade = np.exp(-dt / np.exp(log_tau))
    drive = (1 - fade) * np.stack([r1[:, :-1], r2[:, :-1]], axis=1) * i
    fade, drive = (np.ascontiguousarray(np.moveaxis(x, 2, 0)) for x in (fade, drive))
    state = np.zeros(drive.shape[1:])
    lost = r0 * trace.i
    for k in range(len(i)):
        state = fade[k] * state + drive[k]
        lost[:, k + 1] += state.sum(axis=1)
    return lost


def fit_circuit(cell, traces):
    """Least squares over the logarithms of all resistances and time constants at once."""
    shape = (3, len(cell.temps), len(cell.socs))
    many = int(np.prod(shape))
    target = [cell.settled(trace) - trace.v for trace in traces]

    def parts(x):
        return np.exp(x[:, :many]).reshape(-1, *shape), np.exp(x[:, many:]).reshape(-1, 2, shape[1])

    def batch(x):
        r, tau = parts(x)
        misfit = [circuit(r, tau, cell, trace) - t for trace, t in zip(traces, target)]
        misfit = [m / np.sqrt(m.shape[1]) for m in misfit]
        log_r, log_tau = np.log(r), np.log(tau)
        unlike = [np.diff(log_r, axis=3), np.diff(log_r, axis=2), np.diff(log_tau, axis=2)]
        unlike = [SMOOTH_V / np.sqrt(many) * u.reshape(len(x), -1) for u in unlike]
        return np.hstack(misfit + unlike)

    def jacobian(x):
        step = 1e-4
        rows = batch(np.vstack([x, x + step * np.eye(len(x))]))
        return ((rows[1:] - rows[0]) / step).T

    # A cell of any size loses some 5 % of its voltage at 1C in each resistance, within a factor of 100.
    ohm = 0.05 * 3.5 / cell.capacity_ah
    temps = len(cell.temps)
    start, low, high = (
        np.log(np.concatenate([np.full(many, r), np.full(temps, tau1), np.full(temps, tau2)]))
        for r, tau1, tau2 in [(ohm, 10.0, 300.0), (ohm / 100, 1.0, 100.0), (ohm * 100, 100.0, 4000.0)]
    )
    found = least_squares(
        lambda x: batch(x[None])[0], start, jacobian, bounds=(low, high), max_nfev=25, xtol=1e-4, ftol=1e-4
    )
    r, tau = parts(found.x[None])
    cell.r, cell.tau = r[0], tau[0]
    # Near empty every circuit is wrong; that shall not make a filter distrust it everywhere.
    left = np.concatenate([residual(cell, trace)[trace.soc > 0.1] for trace in traces])
    cell.sigma = np.sqrt(np.mean(left**2))


def residual(cell, trace):
    """Measured less modelled voltage [V], the state of charge being known."""
    return trace.v - cell.settled(trace) + circuit(cell.r[None], cell.tau[None], cell, trace)[0]


def filtered(cell, trace, start_error=0.0, offset_a=0.0):
    """State of charge by an extended Kalman filter over (soc, v1, v2), as a textbook has it (Plett,
    Battery Management Systems, vol. 2, 2015), from sensors with 1 mV noise in steps of 1 mV."""
    noise = np.random.default_rng(1).normal(0.0, 1e-3, len(trace.v))
    volts = np.round(trace.v + noise, 3)
    amps = trace.i + offset_a
    by_temp = weights(trace.temp, cell.temps)
    tau = np.exp(np.log(cell.tau) @ by_temp.T)
    h_part = cell.settled(trace) - cell.open_circuit(trace.soc, trace.temp)  # open loop, as a filter has it too
    x = np.array([trace.soc[0] + start_error, 0.0, 0.0])
    p = np.diag([max(abs(start_error), 0.02) ** 2, 0.01**2, 0.01**2])
    measured = (3 * cell.sigma) ** 2
    soc = np.empty(len(volts))
    for k in range(len(volts)):
        by_soc = weights(np.clip(x[:1], 0, 1), cell.socs)[0]
        r0, r1, r2 = np.exp(np.log(cell.r @ by_soc) @ by_temp[k])
        if k:
            dt = trace.t[k] - trace.t[k - 1]
            i = 0.5 * (amps[k] + amps[k - 1])
            f = np.array([1.0, *np.exp(-dt / tau[:, k])])
            x = f * x + np.array([-i * dt / 3600 / cell.capacity_ah, (1 - f[1]) * r1 * i, (1 - f[2]) * r2 * i])
            p = f[:, None] * p * f + np.diag([(1e-5) ** 2, (1e-4) ** 2, (1e-4) ** 2]) * dt
        low, high = cell.open_circuit(np.clip([x[0] - 0.01, x[0] + 0.01], 0, 1), trace.temp[k])
        gradient = np.array([(high - low) / 0.02, -1.0, -1.0])
        predicted = cell.open_circuit(x[0], trace.temp[k]) + h_part[k] - x[1] - x[2] - r0 * amps[k]
        gain = p @ gradient / (gradient @ p @ gradient + measured)
        x = x + gain * (volts[k] - predicted)
        p = p - np.outer(gain, gradient @ p)
        soc[k] = x[0]
    return soc


def table(path, columns):
    return np.genfromtxt(path, delimiter=",", skip_header=1, usecols=columns).T


def branches(soc_out, v_out, soc_in, v_in):
    """Open-circuit curve and half the gap [V] on `SOC` from a slow discharge and a slow charge. Where only one
    of them reaches, the gap stays as it was where both did; where neither does, the curve goes on straight."""
    out = np.interp(-SOC, -soc_out, v_out, np.nan, np.nan)
    back = np.interp(SOC, soc_in, v_in, np.nan, np.nan)
    half = 0.5 * (back - out)
    both = np.isfinite(half)
    half = np.interp(SOC, SOC[both], half[both])
    middle = np.where(np.isfinite(out), out + half, back - half)
    first, last = np.flatnonzero(np.isfinite(middle))[[0, -1]]
    middle[:first] = middle[first] - np.arange(first, 0, -1) * (middle[first + 1] - middle[first])
    middle[last + 1 :] = middle[last] + np.arange(1, 101 - last) * (middle[last] - middle[last - 1])
    return np.maximum.accumulate(middle), half


def lg_m50(folder):
    """PyBaMM traces: C/30 at 40, 25, 0 °C; UDDS fitted, US06 unseen."""

    def read(name):
        return Trace(name, *table(folder / f"lgm50_{name}.csv", (0, 1, 2, 3, 4)))

    def open_circuit(temp):
        slow = read(f"ocv_{temp}c")
        out, back = slow.i > 0.1, slow.i < -0.1
        return branches(slow.soc[out], slow.v[out], slow.soc[back], slow.v[back])[0]

    ocv = {temp: open_circuit(temp) for temp in (40, 25, 0)}
    # Near empty the slow curves at different temperatures are no longer open-circuit curves.
    per_k = np.interp(SOC, SOC[5:], ((ocv[40] - ocv[0]) / 40)[5:])
    cell = Cell(
        "LG M50 (PyBaMM, O'Regan 2022)", "nmc", 4.967, ocv[25], np.array([-10.0, 0, 25, 40]),
        np.array([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9]), ocv_per_k=per_k,
    )
    seen = [read(f"udds_{temp}c") for temp in (40, 25, 0, -10)]
    fit_circuit(cell, seen)
    return cell, seen, [read(f"us06_{temp}c") for temp in (25, 0, -10)]


def a123(folder):
    """Plett's tests: C/30 both ways at five temperatures; dynamic tests at -25, 5, 35 °C fitted, -5, 25 °C unseen."""
    temps = {"N25": -25.0, "N05": -5.0, "P05": 5.0, "P25": 25.0, "P35": 35.0}
    i_slow = 0.0767

    def slow(label):
        return [table(folder / f"A123_OCV_{label}_S{n}.csv", (4, 8, 9, 7)) for n in (1, 2, 3, 4)]

    def efficiency(runs):
        """Discharged over charged ampere-hours of a test that ends where it began."""
        return sum(run[2][-1] for run in runs) / sum(run[1][-1] for run in runs)

    # Scripts 2 and 4 ran at 25 °C, whatever the temperature of 1 and 3 (Plett's OCV procedure).
    runs = slow("P25")
    eta_25 = efficiency(runs)
    capacity_ah = runs[0][2][-1] + runs[1][2][-1] - eta_25 * (runs[0][1][-1] + runs[1][1][-1])
    ocv, half = {}, {}
    for label in temps:
        s1, s2, s3, s4 = slow(label)
        eta = (s1[2][-1] + s2[2][-1] + s3[2][-1] + s4[2][-1] - eta_25 * (s2[1][-1] + s4[1][-1])) / (s1[1][-1] + s3[1][-1] + 1e-9)
        full_ah = s1[2][-1] + s2[2][-1] - eta * s1[1][-1] - eta_25 * s2[1][-1]
        out, back = s1[0] == 2, s3[0] == 2
        ocv[label], half[label] = branches(
            1 - s1[2][out] / full_ah, s1[3][out], eta * s3[1][back] / full_ah, s3[3][back]
        )
    # Half the gap is hysteresis, the same at all temperatures, and slow loss, which follows Arrhenius.
    middle = slice(15, 86, 5)
    gaps = np.array([half[label][middle] for label in temps])
    inverse = 1 / (np.array(list(temps.values())) + 273.15) - 1 / 298.15
    many = gaps.shape[1]

    def misfit(x):
        return 1e3 * (x[1 : 1 + many] + np.exp(x[0] * inverse)[:, None] * x[1 + many :] - gaps).ravel()

    start = np.concatenate([[4000.0], np.full(many, 0.012), np.full(many, 0.003)])
    found = least_squares(misfit, start, bounds=(0, np.inf), x_scale=start, loss="soft_l1").x
    # Below 0 °C the slow loss is too large for a mean of both ways to be an open-circuit curve.
    warm = ["N05", "P05", "P25", "P35"]
    per_k = np.polyfit([temps[w] for w in warm], np.array([ocv[w] for w in warm]), 1)[0]
    per_k = np.interp(SOC, SOC[10:91], per_k[10:91])
    socs = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
    hysteresis = np.tile(np.interp(socs, SOC[middle], found[1 : 1 + many]), (3, 1))
    cell = Cell(
        "A123 26650 LFP", "lfp", capacity_ah, ocv["P25"], np.array([-25.0, 5, 35]), socs, per_k, hysteresis
    )
    print(f"C/30 gap: slow loss {1e3 * np.median(found[1 + many:]) / i_slow:.0f} mohm at 25 °C, activation {found[0]:.0f} K")

    def dynamic(label):
        runs = [table(next(folder.glob(f"A123_DYN_*_{label}_s{n}.csv")), (0, 4, 5, 2, 3)) for n in (1, 2, 3)]
        t, charged, discharged, i, v = runs[0]
        soc = 1 - (discharged - efficiency(runs) * charged) / capacity_ah
        return Trace(f"dynamic {temps[label]:.0f} °C", t - t[0], i, v, np.full(len(t), temps[label]), soc)

    seen = [dynamic(label) for label in ("N25", "P05", "P35")]
    fit_circuit(cell, seen)
    return cell, seen, [dynamic(label) for label in ("N05", "P25")]


def about_energy(name, chemistry, model_file, unit):
    """About:Energy's cells: open circuit from their C/20 discharge, circuit from their BPX model in PyBaMM
    over US06 at 10, 25, 40 °C; their rate and drive tests unseen."""

    def load(folder):
        import make_traces
        import pybamm

        def read(run, capacity_ah=None):
            t, i, v = table(folder / "data" / "validation" / f"{unit}_25degC_{run}.csv", (0, 1, 2))
            i = -i
            out_ah = np.concatenate([[0.0], np.cumsum(np.diff(t) * 0.5 * (i[1:] + i[:-1])) / 3600])
            capacity_ah = capacity_ah or out_ah[-1]
            return capacity_ah, Trace(run, t, i, v, np.full(len(t), 25.0), 1 - out_ah / capacity_ah)

        capacity_ah, slow = read("Co20")
        unseen = [read(run, capacity_ah)[1] for run in ("Co2", "1C", "2C", "DriveCycle")]

        def model(temp):
            """US06 with peaks of 3C out and 1C in; the voltage less its open circuit."""
            cycle = np.maximum(make_traces.drive_cycles()["US06"] * capacity_ah * 3 / 8.1, -capacity_ah)
            current = np.tile(cycle, int(0.85 * capacity_ah * 3600 / cycle.sum()))
            t = np.arange(len(current), dtype=float)
            values = pybamm.ParameterValues.create_from_bpx(folder / model_file)
            values.update({
                "Current function [A]": pybamm.Interpolant(t, current, pybamm.t),
                "Ambient temperature [K]": 273.15 + temp, "Initial temperature [K]": 273.15 + temp,
                "Lower voltage cut-off [V]": 2.0, "Upper voltage cut-off [V]": 4.5,
            })
            solver = pybamm.IDAKLUSolver(rtol=1e-6, atol=1e-6)
            simulation = pybamm.Simulation(pybamm.lithium_ion.SPMe(), parameter_values=values, solver=solver)
            solution = simulation.solve(t_eval=[0, t[-1]], t_interp=t, initial_soc=0.95)
            v, rest, out_ah = (
                solution[quantity](t)
                for quantity in ("Voltage [V]", "Bulk open-circuit voltage [V]", "Discharge capacity [A.h]")
            )
            return Trace(f"BPX US06 {temp:.0f} °C", t, current, v - rest, np.full(len(t), temp), 0.95 - out_ah / capacity_ah)

        models = [model(temp) for temp in (10.0, 25.0, 40.0)]
        socs = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
        cell = Cell(name, chemistry, capacity_ah, np.zeros(101), np.array([10.0, 25, 40]), socs)
        # With a level open-circuit curve the cell fits what the models lose; then its own curve follows.
        fit_circuit(cell, models)
        lost = circuit(cell.r[None], cell.tau[None], cell, slow)[0]
        cell.ocv = np.maximum.accumulate(np.interp(-SOC, -slow.soc, slow.v + lost))
        for trace in models:
            trace.v += cell.open_circuit(trace.soc, trace.temp)
        return cell, models, unseen

    return load


CELLS = {
    "lg-m50": (lg_m50, "PyBaMM's O'Regan 2022 set over UDDS, see data/README.md."),
    "a123-lfp-26650": (a123, "Measurements by G. Plett (batterysim/esctoolbox-python, MIT licence), see data/README.md."),
    "nmc-pouch": (
        about_energy("About:Energy NMC pouch 12.5 Ah", "nmc", "nmc_pouch_cell_BPX.json", "NMC"),
        "Measurements and model by About:Energy Ltd (CC-BY-SA-4.0), see data/README.md.",
    ),
    "lfp-18650": (
        about_energy("About:Energy LFP 18650 2 Ah", "lfp", "lfp_18650_cell_BPX.json", "LFP"),
        "Measurements and model by About:Energy Ltd (CC-BY-SA-4.0), see data/README.md.",
    ),
}


def write(path, cell, origin):
    def numbers(values, digits):
        return "[" + ", ".join(f"{v:.{digits}f}" for v in values) + "]"

    def rows(values, digits):
        return "[\n" + "".join(f"  {numbers(row, digits)},\n" for row in values) + "]"

    def lines(values, digits):
        return "[\n" + "".join(f"  {numbers(values[k : k + 10], digits)[1:-1]},\n" for k in range(0, 101, 10)) + "]"

    spread = np.ones(len(cell.socs))
    text = f"# Fitted by data/fit_cell.py. {origin}\n"
    text += f'name = "{cell.name}"\nchemistry = "{cell.chemistry}"\ncapacity_mah = {1e3 * cell.capacity_ah:.0f}.0\n'
    text += f"\nocv_mv = {lines(1e3 * cell.ocv, 1)}\n"
    if np.any(cell.ocv_per_k):
        text += f"ocv_mv_per_k = {lines(1e3 * cell.ocv_per_k, 3)}\n"
    text += f"\n# One row per temperature, one column per state of charge.\n"
    text += f"temps_c = {numbers(cell.temps, 1)}\nsoc_grid = {numbers(cell.socs, 2)}\n"
    for key, values, digits in [
        ("r0_mohm", 1e3 * cell.r[0], 2), ("r1_mohm", 1e3 * cell.r[1], 2), ("tau1_s", np.outer(cell.tau[0], spread), 1),
        ("r2_mohm", 1e3 * cell.r[2], 2), ("tau2_s", np.outer(cell.tau[1], spread), 0),
    ]:
        text += f"{key} = {rows(values, digits)}\n"
    if cell.hysteresis is not None:
        text += f"hysteresis_mv = {rows(1e3 * cell.hysteresis, 1)}\nhysteresis_rate = {cell.hysteresis_rate}\n"
    text += f"\nsigma_mv = {1e3 * cell.sigma:.1f}\n"
    path.write_text(text)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in CELLS:
        sys.exit(f"usage: fit_cell.py {{{','.join(CELLS)}}} FOLDER")
    load, origin = CELLS[sys.argv[1]]
    cell, seen, unseen = load(Path(sys.argv[2]))
    write(Path(__file__).parent / "cells" / f"{sys.argv[1]}.toml", cell, origin)
    print(f"{cell.name}: {cell.capacity_ah:.3f} Ah, sigma {1e3 * cell.sigma:.1f} mV")
    for kind, traces in (("fitted", seen), ("unseen", unseen)):
        for trace in traces:
            left = 1e3 * residual(cell, trace)
            rms, above = np.sqrt(np.mean(left**2)), np.sqrt(np.mean(left[trace.soc > 0.1] ** 2))
            print(f"  {kind} {trace.name:18} left over {rms:5.1f} mV RMS, above 10 % charge {above:5.1f}, worst {np.max(np.abs(left)):4.0f}")
    for trace in unseen:
        for title, change in [
            ("right start", {}), ("start 20 points low", {"start_error": -0.2}), ("current +2 % of 1C", {"offset_a": 0.02 * cell.capacity_ah})
        ]:
            error = 100 * (filtered(cell, trace, **change) - trace.soc)
            late = error[trace.t > trace.t[0] + 600]
            print(f"  EKF {trace.name:18} {title:20} RMSE {np.sqrt(np.mean(late**2)):4.2f} %, worst {np.max(np.abs(late)):4.1f} % after 10 min")


if __name__ == "__main__":
    main()
