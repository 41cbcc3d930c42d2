"""Tests of the scripts for machines with a GPU, without one: `python -m unittest test_gpu`.

They need PyTorch; `.ci/run` runs them where there is one. Parts of a visit are shell scripts here,
so that one can fail, crash or hang.
"""

import json
import os
import pathlib
import py_compile
import subprocess
import sys
import tempfile
import types
import unittest

import torch

import gpu_ceilings
import gpu_detection
import gpu_libraries
import gpu_networks
import gpu_speed
import gpu_table
import gpu_training
import speed

HERE = pathlib.Path(__file__).resolve().parent

FLOORS = {"operations": 4e12, "bytes": 1e9, "parameters": 1000}


# What a program of tests says in the end.
GOOD = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'"


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, text, mode=0o644):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


class Scripts(Files):
    def test_every_script_compiles(self):
        scripts = sorted(HERE.glob("*.py"))
        self.assertGreaterEqual(len(scripts), 9)
        for script in scripts:
            py_compile.compile(str(script), str(self.folder / "out"), doraise=True)


class Visit(Files):
    """run.sh with programs that do as they are told."""

    def visit(self, kernels, networks, *more, program="exit 0"):
        here = self.folder / "parcel"
        self.write("parcel/run.sh", (HERE.parent / "gpu/run.sh").read_text())
        self.write("parcel/about.txt", "commit x\n")
        for script in HERE.glob("gpu_*.py"):
            self.write(f"parcel/python/{script.name}", script.read_text())
        for name, body in [("oodbench", program), ("device-kernels", kernels), ("device-tf32", kernels), ("device-networks", networks)]:
            self.write(f"parcel/bin/{name}", f"#!/bin/sh\n{body}\n", 0o755)
        command = ["bash", here / "run.sh", "--python", sys.executable, "--stand-in", "/no/driver"]
        command += ["--only", "correctness", "--out", self.folder / "out", *more]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if not (self.folder / "out").exists():
            return ran, None
        results = json.loads((self.folder / "out/results.json").read_text())
        return ran, {part["name"]: part["outcome"] for part in results["parts"]}

    def test_programs_find_the_libraries_and_their_log_is_kept(self):
        ran, parts = self.visit(f"echo libraries $LD_LIBRARY_PATH on $OODBENCH_DEVICE; {GOOD}", GOOD)
        self.assertEqual((ran.returncode, parts), (0, {"memory": "ok", "kernels": "ok", "tf32": "ok", "networks": "ok"}), ran.stdout + ran.stderr)
        self.assertIn("correctness: shown", ran.stdout)
        self.assertIn("libraries /no/driver on cuda:0", (self.folder / "out/log.txt").read_text())
        self.assertIn("stand-in: no times", (self.folder / "out/table.txt").read_text())
        self.assertIn("3 passed; 0 failed", (self.folder / "out/table.txt").read_text())
        self.assertEqual(len(list((self.folder / "out").iterdir())), 3)

    def test_a_part_that_fails_is_a_line_and_the_next_one_runs(self):
        ran, parts = self.visit("echo why; exit 101", "kill -SEGV $$")
        self.assertEqual(ran.returncode, 1, ran.stdout)
        self.assertEqual(parts, {"memory": "failed (139)", "kernels": "failed (101)", "tf32": "failed (101)", "networks": "failed (139)"})
        self.assertIn("kernels: failed with 101", ran.stdout)
        self.assertIn("why", ran.stdout)
        self.assertIn("correctness: NOT shown", ran.stdout)

    def test_a_program_that_tests_nothing_shows_nothing(self):
        ran, parts = self.visit("echo 'test result: ok. 0 passed; 0 failed; 0 ignored'", "true")
        self.assertEqual(parts, {"memory": "no tests", "kernels": "no tests", "tf32": "no tests", "networks": "no tests"})
        self.assertEqual(ran.returncode, 1)

    def test_programs_that_do_not_start_are_one_line(self):
        ran, parts = self.visit(GOOD, GOOD, program="echo 'GLIBC_9.9 not found' >&2; exit 1")
        self.assertEqual((ran.returncode, parts), (96, None))
        self.assertIn("do not start on this machine: GLIBC_9.9 not found", ran.stderr)

    def test_nothing_is_left_in_the_temporary_folder(self):
        before = set(os.listdir(tempfile.gettempdir()))
        self.visit(GOOD, GOOD)
        left = [name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("oodbench-gpu")]
        self.assertEqual(left, [])


class Table(unittest.TestCase):
    def result(self, **more):
        rows = [
            {"side": "torch", "variant": "eager", "seconds": 0.4, "error": 1e-4},
            {"side": "ours", "variant": "bf16", "seconds": 0.02, "error": 2e-2, "floors": FLOORS},
            {"side": "torch", "variant": "compile-bf16", "seconds": 0.03, "error": 2e-2},
            {"side": "ours", "variant": "f32", "failed": "RuntimeError: out of memory"},
        ]
        return {"task": "forward", "n": 512, "rows": rows, "wrong": [], "steps": 50, "repeats": 4, **more}

    def test_ours_has_ratios_and_shares_of_the_ceilings(self):
        lines = gpu_table.speed_lines(self.result(), (400e12, 1e12), False)
        ours = next(line for line in lines if "ours bf16" in line).split()
        self.assertEqual(ours, ["ours", "bf16", "20.00", "25600", "2.0e-02", "20.00", "1.50", "50%", "5%"])
        self.assertTrue(any("out of memory" in line for line in lines))

    def test_a_rehearsal_has_errors_and_no_times(self):
        text = "\n".join(gpu_table.speed_lines(self.result(), (1, 1), True))
        self.assertIn("2.0e-02", text)
        self.assertNotIn("25600", text)

    def test_the_least_work_of_a_task_follows_from_its_passes(self):
        row = {"floors": FLOORS}
        work = lambda **more: gpu_table.work_of(self.result(**more), row)
        self.assertEqual(work(task="backward")["operations"], 3 * FLOORS["operations"])
        self.assertEqual(work(task="step")["bytes"], 3 * FLOORS["bytes"] + 36 * FLOORS["parameters"])
        # 18 steps from timestep 359, four repeats, two branches.
        self.assertEqual(work(task="diffood")["operations"], 144 * FLOORS["operations"])
        self.assertIsNone(work(task="classify"))

    def test_correctness_needs_every_test_and_no_wrong_number(self):
        part = lambda name, outcome, group="correctness": {"name": name, "group": group, "outcome": outcome}
        names = ("memory", "kernels", "tf32", "networks")
        good = [part(name, "ok") for name in names] + [part("forward", "cut off", "speed")]
        whole = good + [part("detection", "ok", "detection")]
        self.assertEqual(gpu_table.correctness(whole, {"forward": self.result()}), "shown")
        self.assertEqual(gpu_table.correctness(good, {}), "shown, but for detection")
        self.assertEqual(gpu_table.correctness([part("forward", "ok", "speed")], {}), "not asked for")
        for outcome in ("failed (1)", "cut off", "no time", "no tests"):
            self.assertEqual(gpu_table.correctness([*whole, part("kernels", outcome)], {}), "NOT shown")
        wrong = {"forward": self.result(wrong=["ours f32: off"])}
        self.assertEqual(gpu_table.correctness(whole, wrong), "NOT shown")


class Speed(unittest.TestCase):
    def test_errors_are_relative_and_a_nan_is_never_small(self):
        array = lambda *values: gpu_speed.np.array(values, dtype="f4")
        self.assertAlmostEqual(gpu_speed.error_of([array(3, 4.5)], [array(3, 4)]), 0.1, places=6)
        self.assertEqual(gpu_speed.error_of([array(float("nan"), 4)], [array(3, 4)]), float("inf"))
        self.assertIsNone(gpu_speed.error_of([], []))
        with self.assertRaises(RuntimeError):
            gpu_speed.error_of([array(1)], [array(1, 2)])

    def test_ours_may_be_off_by_what_the_precision_costs(self):
        row = lambda side, variant, error: {"side": side, "variant": variant, "error": error}
        judge = lambda *rows: gpu_speed.judge(list(rows))
        self.assertEqual(judge(row("ours", "f32", 9e-5), row("ours", "bf16", 4e-2)), [])
        self.assertEqual(len(judge(row("ours", "f32", 2e-4))), 1)
        self.assertEqual(len(judge(row("ours", "bf16", float("inf")))), 1)
        self.assertEqual(len(judge(row("ours", "bf16", float("nan")))), 1)
        # Three times what PyTorch loses in the same precision is allowed.
        self.assertEqual(judge(row("ours", "bf16", 8e-2), row("torch", "compile-bf16", 4e-2)), [])
        failed = {"side": "ours", "variant": "f32", "failed": "RuntimeError: no"}
        self.assertEqual(judge(failed), ["ours f32: RuntimeError: no"])

    def test_a_side_that_does_not_start_leaves_the_others_alone(self):
        class Side:
            kind, name, records = "torch", "eager-f32", False

            def start(self):
                pass

            def result(self):
                return []

            def seconds(self, rounds):
                return [1.0] * rounds

            def stop(self):
                pass

        class Broken(Side):
            name = "eager"

            def start(self):
                raise OSError("no such program")

        class Endless(Side):
            name = "compile-bf16"

            def start(self):
                gpu_speed.time.sleep(60)

        options = types.SimpleNamespace(limit=4, tiny=True)
        saved = []
        save = lambda rows: saved.append([gpu_speed.summary(row) for row in rows])
        with tempfile.TemporaryFile("w") as talk:
            stderr, sys.stderr = sys.stderr, talk
            try:
                gpu_speed.measure([Side(), Broken(), Endless()], options, save)
            finally:
                sys.stderr = stderr
        good, broken, endless = saved[-1]
        self.assertEqual(good["seconds"], 1.0)
        self.assertEqual(broken["failed"], "OSError: no such program")
        self.assertIn("not ready within", endless["failed"])

    def test_the_variants_compute_one_function(self):
        inputs = speed.normal("x", (2, 3, 16, 16)), torch.tensor([3.0, 700.0]), torch.tensor([1, 10])
        found = {}
        for name in gpu_networks.VARIANTS:
            variant = gpu_networks.Variant(name, "cpu")
            model = variant.unet(0.0, 32, 16).eval()
            with torch.no_grad(), variant.active():
                found[name] = model(variant.images(inputs[0]), *inputs[1:]).float().numpy()
        reference = [found["eager-f32"].ravel()]
        for name, most in [("eager", 1e-5), ("compile-tf32", 1e-5), ("compile-bf16", 5e-2), ("compile-bf16-weights", 5e-2)]:
            self.assertLess(gpu_speed.error_of([found[name].ravel()], reference), most, name)


class Detection(Files):
    def test_auroc_is_read_off_the_leaderboard(self):
        head = "method,params,group,dataset,FPR@95,AUROC,score_images_per_s\n"
        rows = "msp,,near,letters,1,90.5,3\ndiffood,,near,letters,1,87.25,96\ndiffood,,near,,1,88,96\n"
        path = self.write("board.csv", head + rows)
        self.assertEqual(gpu_detection.auroc_of(path), ({"near letters": 87.25}, 96.0))
        with self.assertRaises(RuntimeError):
            gpu_detection.auroc_of(self.write("none.csv", head))

    def test_bf16_may_be_off_by_a_tenth_of_a_point_and_float32_by_a_hundredth(self):
        scores = {("x", "1"): 3.0, ("x", "2"): 4.0}
        values = lambda f32, bf16: [("cpu", 90), ("f32", f32), ("bf16", bf16)]
        runs = lambda *both: {name: {"auroc": {"near x": value}, "scores": scores} for name, value in values(*both)}
        wrong = lambda f32, bf16: len(gpu_detection.judge(runs(f32, bf16), False)[1])
        self.assertEqual(wrong(90.005, 90.08), 0)
        self.assertEqual(wrong(90.02, 90.1), 1)
        self.assertEqual(wrong(90.0, 89.8), 1)
        self.assertEqual(wrong(float("nan"), 90), 2)


    def test_scores_of_the_same_images_are_compared(self):
        path = self.write("scores.csv", "dataset,group,image_id,ood_score\nx,near,1,3.005\nx,near,2,4\n")
        scores, reference = gpu_detection.scores_of(path), {("x", "2"): 4.0, ("x", "1"): 3.0}
        self.assertAlmostEqual(gpu_detection.distance(scores, reference), 1e-3, places=6)
        with self.assertRaises(RuntimeError):
            gpu_detection.distance(scores, {("x", "1"): 3.0})
        runs = {name: {"auroc": {}, "scores": reference} for name in gpu_detection.RUNS}
        self.assertEqual(gpu_detection.judge(runs, False)[1], [])
        runs["f32"]["scores"] = {**reference, ("x", "1"): 3.1}
        self.assertEqual(len(gpu_detection.judge(runs, False)[1]), 1)
        runs["f32"]["scores"] = {**reference, ("x", "1"): float("nan")}
        self.assertEqual(len(gpu_detection.judge(runs, False)[1]), 1)


class Training(unittest.TestCase):
    def test_steps_are_read_off_the_talk(self):
        match = gpu_training.LINE.search("step 50/400: loss 2451.25, 1234 images/s, 3 min 02 s left")
        self.assertEqual(match.groups(), ("50", "2451.25", "1234"))

    def test_a_loss_must_be_a_number_and_fall(self):
        judge = lambda *losses: gpu_training.judge([(i, loss, 1.0) for i, loss in enumerate(losses)], False)[2]
        self.assertEqual(judge(3.0, 2.0, 1.5, 1.0), [])
        self.assertEqual(len(judge(1.0, 2.0)), 1)
        self.assertTrue(judge(3.0, float("nan"), 1.0, 0.5))

    def test_the_configuration_is_that_of_the_benches(self):
        text = gpu_training.config("CIFAR10", False)
        for part in ("ch: 128", "ch_mult: [ 1, 2, 2, 2 ]", "batch_size: 128", "random_flip: true"):
            self.assertIn(part, text)
        self.assertIn("random_flip: false", gpu_training.config("glyphs", True))


class Libraries(Files):
    def test_wheels_come_before_the_drivers_folders_and_each_once(self):
        for name in ("cudnn", "cu13"):
            (self.folder / "nvidia" / name / "lib").mkdir(parents=True)
        found = gpu_libraries.folders([str(self.folder)] * 2)
        wheels = [str(self.folder / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
        self.assertEqual(found[:2], wheels)
        self.assertEqual(len(found), len(set(found)))

    def test_a_library_is_found_where_the_loader_finds_it(self):
        self.assertIsNotNone(gpu_libraries.where("libc.so.6", ""))
        self.assertIsNone(gpu_libraries.where("libno-such-library.so.1", ""))


class Ceilings(unittest.TestCase):
    def test_bytes_are_counted_both_ways(self):
        found = gpu_ceilings.measure(torch.device("cpu"), 1, 16, 2)
        self.assertEqual(found["copy_bytes"], 2 << 20)
        self.assertGreater(found["product_bf16_per_s"], 0)


if __name__ == "__main__":
    unittest.main()
