"""A short training on the device: it is stopped half way, goes on from its checkpoint, and learns.

The network is that of DDIM for CIFAR-10 in bf16, the images CIFAR-10's where they are given and
digits that the program draws otherwise. The program saves when it is stopped, and now and then before.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

CONFIG = """\
Dataset:
  name: '{images}'
  image_size: {side}
  batch_size: {batch}
  random_flip: {flip}
Model:
  struc: 'DDIM'
  image_size: {side}
  num_classes: 10
  in_channels: 3
  out_ch: 3
  ch: {channels}
  ch_mult: [ {mults} ]
  num_res_blocks: {blocks}
  attn_resolutions: [ {attention} ]
  dropout: 0.1
  resamp_with_conv: True
Schedule:
  type: 'linear'
  diffusion_step: 1000
Train:
  epoch: 100000
  iter_interval: 1000
  ema_rate: 0.9999
Optim:
  optimizer: 'adamw'
  lr: 0.0002
  warmup: {warmup}
  grad_clip: 1.0
"""

LINE = re.compile(r"step (\d+)/\d+: .*?loss ([-+.\deE]+|NaN|inf).*?, ([.\d]+) images/s")

# What the program ends with when it was asked to stop, and when it has done all its steps.
STOPPED, DONE = 5, 0


def config(images, tiny):
    sizes = {"side": 32, "batch": 128, "channels": 128, "mults": "1, 2, 2, 2", "blocks": 2, "attention": "16", "warmup": 200}
    if tiny:
        sizes |= {"side": 16, "batch": 2, "channels": 32, "mults": "1, 1", "blocks": 1, "attention": "8", "warmup": 1}
    # A mirrored digit is no digit.
    return CONFIG.format(images=images, flip="true" if images != "glyphs" else "false", **sizes)


class Training:
    def __init__(self, options):
        self.options = options
        self.folder = options.train or os.path.join(options.work, "training")
        self.config = os.path.join(options.work, "training.yml")
        images = "CIFAR10" if options.images else "glyphs"
        with open(self.config, "w") as file:
            file.write(config(images, options.tiny))
        self.steps = []

    def run(self, seconds):
        """Trains for so long; the steps that were told of, each with its loss and speed."""
        options = self.options
        goes_on = os.path.exists(os.path.join(self.folder, "train.safetensors"))
        command = [options.program, "train", "diffusion", "--config", self.config, "--out", self.folder]
        command += ["--device", "cuda:0", "--precision", "bf16", "--progress", "counter", "--validate-every", "0"]
        command += ["--weights-every", "0", "--log-every", "1" if options.tiny else "10"]
        command += ["--checkpoint-every", "1" if options.tiny else "1000"]
        if options.tiny:
            done = self.steps[-1][0] if self.steps else 0
            command += ["--steps", str(done + 5)]
        if options.images:
            command += ["--data", options.images]
        if goes_on:
            command.append("--restart")
        environment = dict(os.environ, LD_LIBRARY_PATH=os.environ["OODBENCH_LIBRARIES"])
        child = subprocess.Popen(command, env=environment, cwd=options.work, stderr=subprocess.PIPE, text=True)
        begin, asked, found = time.monotonic(), False, []
        for line in child.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if match := LINE.search(line):
                found.append((int(match[1]), float(match[2]), float(match[3])))
            # Not before it has told of a step: a first use compiles for a while.
            if not asked and not options.tiny and found and time.monotonic() - begin > seconds:
                child.send_signal(signal.SIGINT)
                asked = True
        code = child.wait()
        if code not in (STOPPED, DONE):
            raise RuntimeError(f"`{' '.join(command)}` ended with {code}")
        if not found:
            raise RuntimeError("the training expected to tell of its steps, told of none")
        if goes_on and self.steps and found[0][0] <= self.steps[-1][0] - 50:
            raise RuntimeError(f"a restart expected to go on from step {self.steps[-1][0]}, began at {found[0][0]}")
        self.steps += found
        return code


def judge(steps, tiny):
    """What is wrong with losses: one that is not a number, or that does not fall."""
    wrong = [f"loss of step {step} expected a number, got {loss}" for step, loss, _ in steps if not loss < float("inf")]
    losses = [loss for _, loss, _ in steps]
    quarter = max(1, len(losses) // 4)
    first, last = statistics.fmean(losses[:quarter]), statistics.fmean(losses[-quarter:])
    if not tiny and not last < first:
        wrong.append(f"loss expected to fall, went from {first:.4g} to {last:.4g}")
    return first, last, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", default=".")
    parser.add_argument("--images", help="a folder with CIFAR-10")
    parser.add_argument("--train", help="the folder of the training")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--limit", type=float, default=float(os.environ.get("PART_SECONDS", 60)))
    options = parser.parse_args()
    for name in ("train", "images", "program", "work"):
        if value := getattr(options, name):
            setattr(options, name, os.path.abspath(value))
    training = Training(options)
    for _ in range(2):
        training.run(0.35 * options.limit)
    first, last, wrong = judge(training.steps, options.tiny)
    speed = statistics.median(images_per_s for _, _, images_per_s in training.steps)
    what = f"step {training.steps[-1][0]}, loss {first:.4g} at first and {last:.4g} at last"
    lines = [f"training: stopped and gone on with, {what}" + ("" if options.stand_in else f", {speed:.0f} images/s")]
    lines += [f"  WRONG: {line}" for line in wrong]
    result = {"kind": "training", "steps": training.steps, "images_per_s": speed, "lines": lines, "wrong": wrong}
    with open(options.out, "w") as file:
        json.dump(result, file)
    if not options.train:
        shutil.rmtree(training.folder)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
