"""Whether DiffOOD in bf16 tells images apart as well as in float32, on the embedded benchmark.

Three runs of the program: on the CPU, on the device in float32, and there in bf16. The AUROC of
each data set may differ by 0.1 points between the last two, and by 0.01 between the first two, whose
scores differ by rounding alone: by at most 1e-3 of their norm, after dozens of evaluations.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time

# Points of AUROC.
SAME, CLOSE = 0.01, 0.1

# |a - b| / |b| of all scores in float32.
SCORES = 1e-3

RUNS = {"cpu": ("cpu", "f32"), "f32": ("cuda:0", "f32"), "bf16": ("cuda:0", "bf16")}


def auroc_of(path):
    """AUROC of each data set of DiffOOD's rows, and images a second."""
    found, speeds = {}, []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] != "diffood":
                continue
            if row["dataset"] and row["AUROC"]:
                found[f"{row['group']} {row['dataset']}"] = float(row["AUROC"])
            if row["score_images_per_s"]:
                speeds.append(float(row["score_images_per_s"]))
    if not found:
        raise RuntimeError(f"`{path}` expected rows of diffood with an AUROC, got none")
    return found, max(speeds, default=None)


def scores_of(path):
    """Each image's score, under data set and image."""
    with open(path, newline="") as file:
        return {(row["dataset"], row["image_id"]): float(row["ood_score"]) for row in csv.DictReader(file)}


def distance(scores, reference):
    """|a - b| / |b|, of the same images."""
    if scores.keys() != reference.keys() or not reference:
        raise RuntimeError(f"scores expected of {len(reference)} images, got {len(scores)}, or others")
    off = math.dist(scores.values(), [reference[image] for image in scores])
    return off / math.hypot(*reference.values())


def run(options, name):
    device, precision = RUNS[name]
    out = os.path.join(options.work, f"detection-{name}")
    command = [options.program, "bench", "--method", "diffood", "--device", device, "--out", out]
    command += ["--set", f"diffood.precision={precision}", "--progress", "none"]
    if options.tiny:
        # Enough for every step of the way, too little for a number.
        command += ["--limit", "6", "--set", "diffood.steps=5", "--set", "diffood.repeats=1"]
    elif device != "cpu":
        command += ["--set", "diffood.batch=auto"]
    environment = dict(os.environ)
    if device != "cpu":
        environment["LD_LIBRARY_PATH"] = os.environ["OODBENCH_LIBRARIES"]
    start = time.monotonic()
    ran = subprocess.run(command, env=environment, cwd=options.work, stdout=sys.stderr)
    seconds = time.monotonic() - start
    if ran.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` ended with {ran.returncode}")
    auroc, images_per_s = auroc_of(os.path.join(out, "leaderboard.csv"))
    scores = scores_of(os.path.join(out, "scores/diffood.csv"))
    return {"auroc": auroc, "images_per_s": images_per_s, "seconds": seconds, "scores": scores}


def judge(runs, tiny):
    """Lines for the table, and what is wrong."""
    lines, wrong = ["DiffOOD on the embedded benchmark, AUROC in per cent"], []
    for dataset in runs["cpu"]["auroc"]:
        cpu, f32, bf16 = (runs[name]["auroc"].get(dataset, float("nan")) for name in RUNS)
        lines.append(f"  {dataset:<30} cpu {cpu:.2f}  f32 {f32:.2f}  bf16 {bf16:.2f}")
        for what, difference, most in [("f32 and cpu", abs(f32 - cpu), SAME), ("bf16 and f32", abs(bf16 - f32), CLOSE)]:
            # With a handful of images one swap is whole points.
            if not difference <= (100 if tiny else most):
                wrong.append(f"AUROC of {what} on {dataset} expected within {most}, differ by {difference:.3f}")
    off = {name: distance(runs[name]["scores"], runs["cpu"]["scores"]) for name in ("f32", "bf16")}
    lines.append(f"  scores off from the CPU's: f32 {off['f32']:.1e}, bf16 {off['bf16']:.1e}")
    if not off["f32"] <= SCORES:
        wrong.append(f"scores in f32 expected within {SCORES:.0e} of the CPU's, got {off['f32']:.1e}")
    return lines, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", default=".")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--stand-in", action="store_true")
    options = parser.parse_args()
    runs = {name: run(options, name) for name in RUNS}
    lines, wrong = judge(runs, options.tiny)
    if not options.stand_in:
        speeds = [f"{name} {runs[name]['images_per_s']:.0f}" for name in RUNS if runs[name]["images_per_s"]]
        lines.append(f"  images/s: {', '.join(speeds)}")
    lines += [f"  WRONG: {line}" for line in wrong]
    for name in RUNS:
        del runs[name]["scores"]
    with open(options.out, "w") as file:
        json.dump({"kind": "detection", "runs": runs, "lines": lines, "wrong": wrong}, file, indent=1)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
