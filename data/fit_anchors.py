"""Makes data/maps/uwb-planar.toml: anchors as surveyed, with what the recording alone can tell fitted.

    python data/fit_anchors.py ../shared/data/positioning/uwb-planar > data/maps/uwb-planar.toml

Fitted on the first third of the fast run: the offset between the two clocks, where each tag sits
on the trolley, and one bias and one sigma per anchor. The rest of the run is for testing; how well
plain least squares does there is printed to stderr.
"""

import sys
from datetime import datetime
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

# From the dataset's README [m].
ANCHORS = np.array([
    [-3.4203, 3.0053, 1.0442], [0.0016, 3.0110, 1.0446], [3.6056, 2.9795, 1.0463], [3.6011, -0.0008, 1.0422],
    [3.5674, -3.0087, 1.0443], [-0.0072, -2.9652, 1.0444], [-3.4673, -2.9587, 1.0445], [-3.4858, -0.0098, 1.0457],
])
TAGS = np.array([[-0.0689, -0.1423, 0.0011], [-0.0750, 0.1402, 0.0016], [0.2034, 0.1451, -0.0008]])
# Motion capture's body frame is the table's turned by half a turn about x (see data/README.md).
TAGS = TAGS * [1, -1, -1]


def read(path, columns):
    """Times [s] and the first `columns` numbers of each row; an empty field is NaN, text heads are skipped."""
    times, rows = [], []
    for line in path.read_text().splitlines():
        first, *rest = line.split(",")
        if not first[:1].isdigit():
            continue
        times.append(datetime.strptime(first, "%Y-%m-%d %H:%M:%S.%f").timestamp())
        rows.append([float(field) if field else np.nan for field in rest[:columns]])
    return np.array(times), np.array(rows)


class Recording:
    def __init__(self, folder):
        self.t, ranges = read(folder / "ranges_fast.csv", 24)
        self.ranges = ranges.reshape(-1, 8, 3)  # row, anchor, tag
        self.truth_t, truth = read(folder / "mocap_fast.csv", 7)
        quaternion = truth[:, [4, 5, 6, 3]]  # w,x,y,z in the file; x,y,z,w for scipy
        # q and -q are one attitude; make neighbours alike before interpolating.
        flips = np.sign(np.sum(quaternion[1:] * quaternion[:-1], axis=1))
        quaternion[1:] *= np.cumprod(flips)[:, None]
        self.pose = np.column_stack([truth[:, :3], quaternion])
        self.third = len(self.t) // 3

    def tags(self, rows, offset_s, levers):
        """Where the tags truly were: row, tag, xyz [m]."""
        t = self.t[rows] + offset_s
        pose = np.column_stack([np.interp(t, self.truth_t, column) for column in self.pose.T])
        attitude = Rotation.from_quat(pose[:, 3:])
        return pose[:, None, :3] + np.stack([attitude.apply(lever) for lever in levers], axis=1)

    def residuals(self, rows, offset_s, levers):
        """Range less true distance [m]: row, anchor, tag."""
        away = self.tags(rows, offset_s, levers)[:, None] - ANCHORS[:, None]
        return self.ranges[rows] - np.linalg.norm(away, axis=3)


def fit(recording):
    rows = slice(0, recording.third)

    def parts(x):
        return x[0], TAGS + np.column_stack([x[1:7].reshape(3, 2), np.zeros(3)]), x[7:]

    def misfit(x):
        offset_s, levers, bias = parts(x)
        return np.nan_to_num(recording.residuals(rows, offset_s, levers) - bias[:, None]).ravel()

    solution = least_squares(misfit, np.zeros(15), loss="soft_l1", f_scale=0.1)
    offset_s, levers, bias = parts(solution.x)
    left = np.abs(recording.residuals(rows, offset_s, levers) - bias[:, None])
    sigma = 1.4826 * np.nanmedian(left, axis=(0, 2))
    height = recording.tags(rows, offset_s, levers)[:, :, 2].mean()
    return offset_s, levers, bias, sigma, height


def locate(ranges, bias, height):
    """Least squares at known height, one position per row, from the middle of the room."""
    xy = np.zeros((len(ranges), 2))
    for _ in range(8):
        away = np.column_stack([xy, np.full(len(xy), height)])[:, None] - ANCHORS
        distance = np.linalg.norm(away, axis=2)
        error = ranges - bias - distance
        seen = np.isfinite(error)
        jacobian = np.where(seen[:, :, None], away[:, :, :2] / distance[:, :, None], 0.0)
        normal = np.einsum("ija,ijb->iab", jacobian, jacobian)
        gradient = np.einsum("ija,ij->ia", jacobian, np.where(seen, error, 0.0))
        xy += np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
    return xy


def main():
    recording = Recording(Path(sys.argv[1]))
    offset_s, levers, bias, sigma, height = fit(recording)

    rest = slice(recording.third, None)
    for title, arms, biases in [("table, no bias", TAGS, 0 * bias), ("table, bias", TAGS, bias), ("fitted", levers, bias)]:
        truth = recording.tags(rest, offset_s, arms)
        for tag in range(3):
            miss = np.linalg.norm(locate(recording.ranges[rest, :, tag], biases, height) - truth[:, tag, :2], axis=1)
            p50, p95 = 100 * np.percentile(miss, [50, 95])
            print(f"{title:15} tag {tag}: P50 {p50:4.1f} cm, P95 {p95:4.1f} cm", file=sys.stderr)

    print("# Eight UWB anchors around a trolley (recorded set uwb-planar, MIT licence, see data/README.md).")
    print("# Positions as surveyed. The rest is fitted by data/fit_anchors.py on the first third of the fast run.")
    print('name = "uwb-planar"\nversion = 1\n')
    print("[recording]")
    print("# Truth at (time of a range + offset) belongs to that range.")
    print(f"time_offset_s = {offset_s:.3f}")
    print("# What the four columns after x,y,z of the truth file hold.")
    print('quaternion = "wxyz"')
    print("# Tag 0, 1, 2 in the frame of that attitude. The dataset's table, turned into it, says")
    print(f"# {TAGS.tolist()}.")
    print("lever_arm_m = [" + ", ".join(f"[{x:.4f}, {y:.4f}, {z:.4f}]" for x, y, z in levers) + "]")
    print("# All anchors hang at one height, so the tag's must be known.")
    print(f"tag_height_m = {height:.3f}")
    for index, (position, b, s) in enumerate(zip(1000 * ANCHORS, 1000 * bias, 1000 * sigma)):
        x, y, z = (round(v) for v in position)
        print(f"\n[[anchor]]\nid = {index + 1}\nnode = {index + 1}\nindex = 0")
        print(f"x_mm = {x}\ny_mm = {y}\nz_mm = {z}\nbias_mm = {b:.0f}\nsigma_mm = {s:.0f}")


if __name__ == "__main__":
    main()
