"""The table of a visit to a GPU, from what its parts left; needs nothing but Python.

Writes `results.json` and `table.txt`, prints the table, and ends with 1 where correctness is not
shown: a part that tests numbers failed, was cut off or had no time, or numbers of ours are wrong.
"""

import argparse
import glob
import json
import os
import re
import sys

# For a device whose ceilings were not measured: what was seen of an H200 elsewhere.
PRODUCT_PER_S, COPY_PER_S = 790e12, 4.3e12

# What the counts of tests begin with where any was run.
PASSED = re.compile(r"[1-9]\d* passed")

# A backward pass has two products for each of a forward pass, and reads and writes about twice as
# much; the optimiser and the average read and write weights, gradients, two moments and the average.
PASSES = {"forward": 1, "backward": 3, "step": 3}
OPTIMISER_BYTES = 9 * 4

TITLES = {
    "forward": "U-Net forward",
    "backward": "forward and backward",
    "step": "training step",
    "diffood": "DiffOOD",
    "classify": "ResNet-18",
}


def read(folder):
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        with open(path) as file:
            found[os.path.splitext(os.path.basename(path))[0]] = json.load(file)
    return found


def parts_of(path):
    rows = []
    with open(path) as file:
        for line in file:
            name, group, code, seconds, counts = line.rstrip("\n").split("\t")
            outcome = {"0": "ok", "no time": "no time", "124": "cut off", "137": "cut off"}
            outcome = outcome.get(code, f"failed ({code})")
            if group == "correctness" and outcome == "ok" and not PASSED.match(counts):
                outcome = "no tests"
            rows.append({"name": name, "group": group, "outcome": outcome, "seconds": int(seconds), "counts": counts})
    return rows


def work_of(result, row):
    """Operations and bytes that a task takes at least, of the U-Net alone."""
    floors = row.get("floors")
    if floors is None or result["task"] == "classify":
        return None
    if result["task"] == "diffood":
        evaluations = -(-359 // (1000 // result["steps"])) * 2 * result["repeats"]
        return {name: floors[name] * evaluations for name in ("operations", "bytes")}
    passes = PASSES[result["task"]]
    work = {name: floors[name] * passes for name in ("operations", "bytes")}
    if result["task"] == "step":
        work["bytes"] += OPTIMISER_BYTES * floors["parameters"]
    return work


def best(rows, side):
    times = [row for row in rows if row["side"] == side and "seconds" in row]
    return min(times, key=lambda row: row["seconds"], default=None)


def speed_lines(result, ceilings, no_times):
    rows = result["rows"]
    lines = [f"{TITLES[result['task']]}, {result['n']} images"]
    fastest = best(rows, "torch")
    official = next((row for row in rows if row["variant"] == "eager"), {})
    for row in rows:
        name = f"  {'ours' if row['side'] == 'ours' else 'PyTorch'} {row['variant']}"
        if "failed" in row:
            lines.append(f"{name:<32}{row['failed'][:90]}")
            continue
        error = "-" if row.get("error") is None else f"{row['error']:.1e}"
        if no_times or "seconds" not in row:
            lines.append(f"{name:<32}{'-':>10}{'-':>12}{error:>10}")
            continue
        seconds = row["seconds"]
        line = f"{name:<32}{1e3 * seconds:>10.2f}{result['n'] / seconds:>12.0f}{error:>10}"
        if row["side"] == "ours":
            for other in (official, fastest):
                ratio = other["seconds"] / seconds if other and "seconds" in other else None
                line += f"{'-' if ratio is None else f'{ratio:.2f}':>10}"
            if work := work_of(result, row):
                per_s = work["operations"] / seconds, work["bytes"] / seconds
                line += f"{per_s[0] / ceilings[0]:>9.0%}{per_s[1] / ceilings[1]:>9.0%}"
        lines.append(line)
    refused = {row["graphs"] for row in rows if row.get("graphs", "").startswith("refused")}
    lines += [f"  CUDA graphs {line[:90]}" for line in sorted(refused)]
    lines += [f"  WRONG: {line}" for line in result["wrong"]]
    return lines


def table(parts, results, about, no_times):
    lines = [about.strip(), ""]
    if no_times:
        lines += ["stand-in: no times", ""]
    for part in parts:
        seconds = "" if no_times else f"{part['seconds']:>5} s"
        lines.append(f"{part['name']:<14}{part['outcome']:<14}{seconds}  {part['counts']}".rstrip())
    ceilings = PRODUCT_PER_S, COPY_PER_S
    if (measured := results.get("ceilings")) and not no_times:
        ceilings = measured["product_bf16_per_s"], measured["copy_bytes_per_s"]
        lines += ["", f"{measured.get('device', 'cpu')}, PyTorch {measured['torch']}: bf16 product {ceilings[0] / 1e12:.0f} TFLOP/s, copy {ceilings[1] / 1e12:.2f} TB/s"]
    for name in ("detection", "training"):
        if name in results:
            lines += ["", *results[name]["lines"]]
    speeds = [results[task] for task in TITLES if task in results]
    if speeds:
        columns = f"{'ms':>10}{'images/s':>12}{'error':>10}{'x eager':>10}{'x best':>10}{'FLOP':>9}{'bytes':>9}"
        lines += ["", " " * 32 + columns]
    for result in speeds:
        lines += speed_lines(result, ceilings, no_times)
    if speeds and not no_times:
        lines += ["", "x eager, x best: PyTorch's time over ours, of its defaults and of its fastest variant.",
                  "FLOP, bytes: the share of the two ceilings that the least work there is, of the U-Net, makes up."]
    return lines


def correctness(parts, results):
    """Whether it was shown, in a word; a part that was not asked for shows nothing."""
    tests = [part for part in parts if part["group"] in ("correctness", "detection")]
    wrong = [line for result in results.values() for line in result.get("wrong", [])]
    if wrong or any(part["outcome"] != "ok" for part in tests):
        return "NOT shown"
    if not tests:
        return "not asked for"
    asked = {part["name"] for part in tests}
    missing = [name for name in ("memory", "kernels", "tf32", "networks", "detection") if name not in asked]
    return f"shown, but for {', '.join(missing)}" if missing else "shown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("parts", "results", "about", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--stand-in", action="store_true")
    options = parser.parse_args()
    parts, results = parts_of(options.parts), read(options.results)
    with open(options.about) as file:
        about = file.read()
    shown = correctness(parts, results)
    lines = table(parts, results, about, options.stand_in)
    lines += ["", f"correctness: {shown}"]
    text = "\n".join(lines) + "\n"
    whole = {"about": about.splitlines(), "stand_in": options.stand_in, "parts": parts, "results": results}
    for name, content in [("table.txt", text), ("results.json", json.dumps(whole, indent=1) + "\n")]:
        partial = os.path.join(options.out, f".{name}.partial")
        with open(partial, "w") as file:
            file.write(content)
        os.replace(partial, os.path.join(options.out, name))
    print(text, end="")
    return 1 if shown == "NOT shown" else 0


if __name__ == "__main__":
    sys.exit(main())
