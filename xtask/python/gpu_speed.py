"""One task by our program and by PyTorch's variants, in turn, on one device.

Each round goes through all sides, so that whatever the device does meets all of them. A side does
its task a few times before it is timed; the clock is read only when the device is idle. What the
sides compute is compared with PyTorch's float32 without TF32, by |a - b| / |b|.

`--warm` compiles what the task needs and measures nothing: the compiler's results are kept in
$TORCHINDUCTOR_CACHE_DIR, and another process finds them there.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

import gpu_networks
import speed

# Name: images, PyTorch's variants, our precisions.
TASKS = {
    "forward": (512, gpu_networks.VARIANTS, ["f32", "tf32", "bf16"]),
    "backward": (128, ["eager-f32", "eager", "compile-tf32", "compile-bf16"], ["f32", "tf32", "bf16"]),
    "step": (128, ["eager", "compile-tf32", "compile-bf16"], ["tf32", "bf16"]),
    "diffood": (64, ["eager-f32", "eager", "compile-bf16", "compile-bf16-weights"], ["f32", "tf32", "bf16"]),
    "classify": (1024, ["eager-f32", "eager", "compile-tf32", "compile-bf16", "compile-bf16-weights"], ["f32", "tf32"]),
}

# The largest error of ours against the reference. In float32 both round 24 bits; TF32 keeps 11 of
# them in each product and bf16 keeps 8 in each activation, and dozens of layers add that up. PyTorch's
# own error in the same precision is beside it, and three times that is allowed.
BOUNDS = {"f32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
SAME_PRECISION = {"tf32": "compile-tf32", "bf16": "compile-bf16"}


class Torch:
    """PyTorch's side in one variant."""

    kind = "torch"

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.variant = gpu_networks.Variant(name, options.device, options.mode)
        self.prepare = getattr(self, f"prepare_{options.task}")
        self.records = self.variant.compiled

    def start(self):
        self.call = self.prepare(self.options.n)

    def inputs(self, n):
        side = self.options.side
        t = torch.tensor([float(i * 997 % 1000) for i in range(n)], device=self.variant.device)
        y = torch.tensor([i % 11 for i in range(n)], device=self.variant.device)
        return self.variant.images(speed.normal("x", (n, 3, side, side))), t, y

    def unet(self, dropout):
        return self.variant.unet(dropout, self.options.channels, self.options.side)

    def prepare_forward(self, n):
        x, t, y = self.inputs(n)
        model = self.variant.compile(self.unet(0.1).eval())

        def call():
            with torch.no_grad():
                return [model(x, t, y)]

        return call

    def loss(self, model, x, t, y):
        return (model(x, t, y).float() - x.float()).square().flatten(1).sum(1).mean()

    def prepare_backward(self, n):
        x, t, y = self.inputs(n)
        raw = self.unet(0.0).train()
        model = self.variant.compile(raw)
        named = dict(raw.named_parameters())

        def call():
            for p in named.values():
                p.grad = None
            self.loss(model, x, t, y).backward()
            return [named[name].grad for name in sorted(speed.COMPARED)]

        return call

    def prepare_step(self, n):
        x, t, y = self.inputs(n)
        raw = self.unet(0.1).train()
        model = self.variant.compile(raw)
        parameters = list(raw.parameters())
        optimiser = self.variant.optimiser(parameters)
        average = [p.detach().clone() for p in parameters]

        def call():
            if self.variant.compiled:
                # Gradients lie in the memory of the last replay, which the next one writes over.
                optimiser.zero_grad(set_to_none=True)
            loss = self.loss(model, x, t, y)
            if not self.variant.compiled:
                # The official code logs each loss.
                loss.item()
                optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            with torch.no_grad():
                if self.variant.compiled:
                    torch._foreach_lerp_(average, parameters, 1 - 0.9999)
                else:
                    for mean, p in zip(average, parameters):
                        mean.mul_(0.9999).add_(p, alpha=1 - 0.9999)
            return []

        return call

    def pixels(self, n):
        shape = (n, 3, self.options.side, self.options.side)
        return torch.from_numpy(speed.stream("images", math.prod(shape)).astype(np.float32)).reshape(shape)

    def classifier(self):
        model = self.variant.compile(self.variant.classifier())
        device = self.variant.device
        mean = torch.tensor([0.4914, 0.4822, 0.4465], device=device)[None, :, None, None]
        std = torch.tensor([0.2470, 0.2435, 0.2616], device=device)[None, :, None, None]

        def classify(images):
            self.variant.begin()
            logits, features = model(self.variant.images((images - mean) / std))
            return logits.float().clone(), features.float().clone()

        return classify

    def prepare_classify(self, n):
        pixels, classify = self.pixels(n), self.classifier()

        def call():
            with torch.no_grad():
                return [classify(pixels.to(self.variant.device))[0]]

        return call

    def prepare_diffood(self, n):
        repeats, spacing = self.options.repeats, 1000 // self.options.steps
        pixels, classify = self.pixels(n), self.classifier()
        noise = speed.normal("noise", (n * repeats, 3, self.options.side, self.options.side))
        model = self.variant.compile(self.unet(0.1).eval())
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        signal = torch.cumprod(1 - betas.float(), 0).double()
        # The clean end of the reference's trajectory is index -1, whose signal is the first one.
        at = lambda t: signal[t + 1].item()
        rows, device = n * repeats, self.variant.device

        def call():
            with torch.no_grad():
                images, drawn = pixels.to(device), noise.to(device)
                classes = classify(images)[0].argmax(1).repeat_interleave(repeats)
                both = torch.cat([classes, torch.full_like(classes, 10)])
                images = images.repeat_interleave(repeats, 0)
                features = []
                for first in (0, 360):
                    a = signal[first].item()
                    x = (images * 2 - 1) * math.sqrt(a) + drawn * math.sqrt(1 - a)
                    t = first - 1
                    while t > -1:
                        following = max(t - spacing, -1)
                        times = torch.full((2 * rows,), float(t), device=device)
                        self.variant.begin()
                        eps = model(self.variant.images(torch.cat([x, x])), times, both).float()
                        eps = 3 * eps[:rows] - 2 * eps[rows:]
                        a, b = at(t), at(following)
                        clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
                        x = math.sqrt(b) * clean + math.sqrt(1 - b) * eps
                        t = following
                    h = classify((x * 0.5 + 0.5).clamp(0, 1))[1]
                    features.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
                changes = (features[1] - features[0]).abs().sum(1)
                # Scores go to the host, as ours do.
                return [changes.reshape(n, repeats).mean(1).cpu()]

        return call

    def once(self):
        self.variant.begin()
        with self.variant.active():
            return self.call()

    def synchronize(self):
        if self.variant.device.type == "cuda":
            torch.cuda.synchronize(self.variant.device)

    def result(self):
        return [t.detach().float().cpu().numpy().ravel() for t in self.once()]

    def seconds(self, rounds):
        found = []
        for _ in range(rounds):
            self.synchronize()
            start = time.perf_counter()
            self.once()
            self.synchronize()
            found.append(time.perf_counter() - start)
        return found

    def stop(self):
        self.call = None


class Ours:
    """Our program in one precision."""

    kind, records = "ours", False

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.file = os.path.join(options.work, f"ours-{options.task}-{name}")
        self.child = None

    def launch(self):
        """Begins to make ready, which takes seconds of a core, and does not wait for it."""
        options = self.options
        device = "cuda:0" if options.stand_in else options.device
        command = [options.ours, "--device", device, "--precision", self.name]
        for name in ("steps", "repeats", "channels", "side", "graphs"):
            command += [f"--{name}", str(getattr(options, name))]
        environment = dict(os.environ)
        if "OODBENCH_LIBRARIES" in environment:
            environment["LD_LIBRARY_PATH"] = environment["OODBENCH_LIBRARIES"]
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)

    def start(self):
        if self.child is None:
            self.launch()

    def ask(self, *words):
        self.child.stdin.write("\t".join(str(word) for word in words) + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the program ended with {self.child.wait()}")
        if answer.startswith("error: "):
            raise RuntimeError(answer)
        return answer

    def result(self):
        self.ask(self.options.task, self.options.n, self.file, 0, 1)
        found = []
        while os.path.exists(path := f"{self.file}.{len(found)}"):
            found.append(np.fromfile(path, dtype="<f4"))
            os.remove(path)
        return found

    def seconds(self, rounds):
        return [float(self.ask(self.options.task, self.options.n, self.file, 0, 1)) for _ in range(rounds)]

    def floors(self):
        operations, size, parameters = self.ask("floors", self.options.n, self.file).split()
        return {"operations": int(operations), "bytes": int(size), "parameters": int(parameters)}

    def stop(self):
        with contextlib.suppress(OSError):
            self.child.stdin.close()
        self.child.wait(timeout=30)


def error_of(found, reference):
    """|a - b| / |b| of the worst tensor; a NaN is never small."""
    if [t.shape for t in found] != [t.shape for t in reference]:
        raise RuntimeError(f"results expected {[t.shape for t in reference]}, got {[t.shape for t in found]}")
    if not reference:
        return None
    with np.errstate(all="ignore"):
        norms = [np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64)) for a, b in zip(found, reference)]
    return float("inf") if any(not math.isfinite(norm) for norm in norms) else float(max(norms))


class OutOfTime(Exception):
    """A side took longer to start than the part has."""


@contextlib.contextmanager
def limited(seconds):
    """Ends what runs inside after so many seconds, where the interpreter gets to it."""

    def stop(*_):
        raise OutOfTime(f"not ready within {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def failure(side, reason):
    line = f"{type(reason).__name__}: {reason}".splitlines()[0]
    print(f"{side.kind} {side.name}: {line}", file=sys.stderr, flush=True)
    return line


def measure(sides, options, save):
    """A row for each side. One that fails is a row with its reason, and the others go on."""
    begin, rows, alive, reference = time.monotonic(), [], [], None
    left = lambda part: part * options.limit - (time.monotonic() - begin)
    for side in sides:
        row = {"side": side.kind, "variant": side.name, "times": []}
        rows.append(row)
        try:
            with limited(left(0.7)):
                side.start()
                results = side.result()
                if side.name == "eager-f32":
                    reference = results
                if reference is not None:
                    row["error"] = error_of(results, reference)
                if side.kind == "ours":
                    row["floors"] = side.floors()
                # PyTorch's graphs are recorded in the second and the third call, ours in the first.
                side.seconds(3 if side.records and not options.tiny else 1)
                row["times"] += side.seconds(1)
                if side.kind == "ours":
                    row["graphs"] = side.ask("graphs", options.n, side.file)
            alive.append((side, row))
        except Exception as reason:  # noqa: BLE001, whatever it is, it is this row's
            row["failed"] = failure(side, reason)
        save(rows)
    turn = 1
    while alive and turn < (1 if options.tiny else 40) and left(0.85) > 0:
        for side, row in list(alive):
            # What takes seconds has a median of three, so that the others have time for more.
            if len(row["times"]) >= 3 and row["times"][-1] > 1:
                continue
            try:
                row["times"] += side.seconds(1)
            except Exception as reason:  # noqa: BLE001
                row["failed"] = failure(side, reason)
                alive.remove((side, row))
        turn += 1
    save(rows)
    for side, _ in alive:
        side.stop()


def summary(row):
    """A row without its single times."""
    row, times = dict(row), row["times"]
    del row["times"]
    if times and "failed" not in row:
        row["seconds"], row["rounds"] = statistics.median(times), len(times)
        row["fastest"], row["slowest"] = min(times), max(times)
    return row


def judge(rows):
    """What is wrong with our numbers, a line each."""
    errors = {(row["side"], row["variant"]): row.get("error") for row in rows}
    wrong = []
    for row in rows:
        if row["side"] != "ours":
            continue
        name = row["variant"]
        if "failed" in row:
            wrong.append(f"ours {name}: {row['failed']}")
            continue
        theirs = errors.get(("torch", SAME_PRECISION.get(name, "")))
        bound = max(BOUNDS[name], 3 * theirs if theirs is not None and math.isfinite(theirs) else 0)
        row["bound"] = bound
        if row.get("error") is not None and not row["error"] <= bound:
            wrong.append(f"ours {name}: error expected at most {bound:.0e}, got {row['error']:.1e}")
    return wrong


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--device", default="cuda:0", help="PyTorch's; ours too, but for a rehearsal")
    parser.add_argument("--stand-in", action="store_true", help="ours computes on a stand-in for the driver")
    parser.add_argument("--ours", help="our program")
    parser.add_argument("--out", help="a file for the result")
    parser.add_argument("--work", default=".", help="a folder for what the sides compute")
    limit = float(os.environ.get("PART_SECONDS", 600))
    parser.add_argument("--limit", type=float, default=limit, help="seconds for all of it")
    parser.add_argument("--mode", default="reduce-overhead", help="of torch.compile")
    parser.add_argument("--graphs", choices=["on", "off"], default="on", help="CUDA graphs of ours")
    parser.add_argument("--n", type=int, help="images")
    parser.add_argument("--tiny", action="store_true", help="small sizes and one round")
    parser.add_argument("--warm", action="store_true", help="compile, and measure nothing")
    options = parser.parse_args(arguments)
    options.n = options.n or (2 if options.tiny else TASKS[options.task][0])
    options.channels, options.side = (32, 16) if options.tiny else (128, 32)
    options.steps, options.repeats = (5, 1) if options.tiny else (50, 4)
    if not options.warm and not (options.ours and options.out):
        parser.error("--ours and --out are needed, or --warm")
    return options


def main():
    options = options_of(sys.argv[1:])
    _, variants, precisions = TASKS[options.task]
    sides = [Torch(name, options) for name in variants]
    if options.warm:
        for side in sides:
            if side.variant.compiled:
                side.start()
                side.result()
        return 0
    ours = [Ours(name, options) for name in precisions]
    for side in ours:
        side.launch()
    sides[1:1] = ours
    counted = gpu_networks.operations(options.channels, options.side) * options.n
    names = ("task", "n", "side", "channels", "steps", "repeats", "graphs", "mode")
    result = {"kind": "speed", **{name: getattr(options, name) for name in names}}
    result["operations_by_torch"] = counted

    def save(rows):
        result["rows"] = [summary(row) for row in rows]
        result["wrong"] = judge(result["rows"])
        with open(options.out + ".partial", "w") as file:
            json.dump(result, file, indent=1)
        os.replace(options.out + ".partial", options.out)

    measure(sides, options, save)
    for line in result["wrong"]:
        print(f"error: {options.task}, {line}", file=sys.stderr)
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
