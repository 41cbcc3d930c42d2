//! Trainings: killed at any moment and gone on with, stopped by a signal, refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use oodbench_tests::binary::{Ran, Scene};

/// A diffusion network of seconds, in the reference's spelling.
const DIFFUSION: &str = "\
Dataset:
  name: 'glyphs'
  image_size: 16
  batch_size: 4
  random_flip: true

Model:
  struc: 'DDIM'
  image_size: 16
  num_classes: 10
  in_channels: 3
  out_ch: 3
  ch: 32
  ch_mult: [ 1, 1 ]
  num_res_blocks: 1
  attn_resolutions: [ ]
  dropout: 0.1
  resamp_with_conv: True

Schedule:
  type: 'linear'
  diffusion_step: 1000

Train:
  epoch: 1
  iter_interval: 1000
  ema_rate: 0.9

Optim:
  optimizer: 'adamw'
  lr: 0.002
  warmup: 5
";

/// A classifier of seconds; with `benchmark` before it.
const CLASSIFIER: &str = "arch = \"resnet8\"\nepochs = 2\nbatch_size = 16\nlearning_rate = 0.05\n";

const TOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/toy.toml");

const STEPS: &str = "44";

/// The arguments of a training of 44 steps on 200 digits, in `out`.
fn diffusion<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "diffusion", "--config", "tiny.yml", "--benchmark", TOY];
    args.extend(["--steps", STEPS, "--checkpoint-every", "4", "--out", out]);
    args.extend(["--validate-every", "20", "--sample-step", "5", "--weights-every", "30"]);
    args.extend(more);
    args
}

fn classifier<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "classifier", "--config", "tiny.toml"];
    args.extend(["--checkpoint-every", "2", "--out", out]);
    args.extend(more);
    args
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("tiny.yml", DIFFUSION);
    scene.write("tiny.toml", format!("benchmark = \"{TOY}\"\n{CLASSIFIER}"));
    scene
}

/// Every file that a training leaves, but for what says when it ran.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && name != "info.txt" {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

/// Starts the training, and kills it with SIGKILL once it has a checkpoint and has run for a
/// while; goes on with it, and kills it again. How often it was killed before it came to its end.
fn killed_again_and_again(scene: &Scene, args: &[&str], delays_ms: &[u64]) -> usize {
    let restart = [args, &["--restart"]].concat();
    let checkpoint = scene.path("killed/train.safetensors");
    let mut kills = 0;
    for &delay_ms in delays_ms {
        let args = if checkpoint.exists() { &restart[..] } else { args };
        let mut command = scene.command(args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while !checkpoint.exists() && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(delay_ms));
        // SIGKILL: nothing can be tidied up.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            None => kills += 1,
            code => assert_eq!(code, Some(0), "{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    scene.run(&restart).succeeded();
    kills
}

#[test]
fn a_killed_training_of_a_diffusion_network_ends_with_the_same_weights() {
    let scene = scene();
    let whole = scene.run(&diffusion("whole", &[]));
    whole.succeeded();
    assert!(whole.stderr.contains("step 44/44: loss "), "{}", whole.stderr);
    let killed = diffusion("killed", &[]);
    let kills = killed_again_and_again(&scene, &killed, &[0, 130, 260, 70]);
    assert!(kills >= 3, "the training was killed {kills} times before its end");
    let (whole, killed) = (files(&scene.path("whole")), files(&scene.path("killed")));
    let names: Vec<&str> = whole.keys().map(String::as_str).collect();
    let expected = [
        "ema-30.safetensors",
        "ema.safetensors",
        "model-30.safetensors",
        "model.safetensors",
        "train.lock",
        "train.safetensors",
        "valid-20.png",
        "valid-40.png",
    ];
    assert_eq!(names, expected);
    assert_eq!(killed.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(bytes == &killed[name], "`{name}` differs");
    }
    assert_ne!(whole["ema.safetensors"], whole["model.safetensors"]);

    // What it left can be used at once.
    let weights = scene.path("killed/ema.safetensors");
    let set = format!("diffood.weights={}", weights.display());
    let ran = scene.bench(&["--method", "diffood", "--set", &set, "--limit", "4"]);
    ran.succeeded();
    let info = scene.read("killed/info.txt");
    assert!(info.contains("step 0: begins, tiny.yml, seed 0, cpu"), "{info}");
    assert!(info.contains("goes on") && info.contains("step 44: ends"), "{info}");
}

#[test]
fn a_killed_training_of_a_classifier_ends_with_the_same_weights() {
    let scene = scene();
    let whole = scene.run(&classifier("whole", &[]));
    whole.succeeded();
    assert!(whole.stderr.contains("pass 2: loss "), "{}", whole.stderr);
    let killed = classifier("killed", &[]);
    let kills = killed_again_and_again(&scene, &killed, &[0, 60, 120]);
    assert!(kills >= 2, "the training was killed {kills} times before its end");
    let (whole, killed) = (files(&scene.path("whole")), files(&scene.path("killed")));
    let expected = ["best.safetensors", "last.safetensors", "train.lock", "train.safetensors"];
    assert_eq!(whole.keys().collect::<Vec<_>>(), expected);
    for (name, bytes) in &whole {
        assert!(bytes == &killed[name], "`{name}` differs");
    }
    let weights = scene.path("killed/best.safetensors");
    let ran = scene.bench(&["--method", "msp", "--classifier", weights.to_str().unwrap()]);
    ran.succeeded();
}

#[test]
fn a_signal_finishes_the_step_and_saves() {
    let scene = scene();
    let args = diffusion("run", &["--log-every", "1"]);
    let mut command = scene.command(&args);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let checkpoint = scene.path("run/train.safetensors");
    let start = Instant::now();
    while !checkpoint.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    let kill = format!("kill -TERM {}", child.id());
    let sent = std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("stopped after step") && stderr.contains("--restart"), "{stderr}");
    let goes_on = diffusion("run", &["--restart"]);
    scene.run(&goes_on).succeeded();
    scene.run(&diffusion("whole", &[])).succeeded();
    for name in ["train.safetensors", "ema.safetensors", "model.safetensors"] {
        let read = |folder: &str| std::fs::read(scene.path(folder).join(name)).unwrap();
        assert!(read("run") == read("whole"), "`{name}` differs");
    }
    // One event file for each time that it began.
    assert_eq!(std::fs::read_dir(scene.path("run/tensorboard")).unwrap().count(), 2);
}

/// Runs a training of few steps on a configuration in which `from` is replaced by `to`.
fn changed(scene: &Scene, from: &str, to: &str, more: &[&str]) -> Ran {
    assert!(DIFFUSION.contains(from), "{from}");
    scene.write("tiny.yml", DIFFUSION.replace(from, to));
    scene.run(&diffusion("run", more))
}

#[test]
fn a_configuration_that_makes_no_sense() {
    let scene = scene();
    let ran = changed(&scene, "warmup: 5", "warm_up: 5", &[]);
    ran.refused(2, &["tiny.yml", "warm_up", "did you mean `warmup`?"]);
    changed(&scene, "lr: 0.002", "lr: -1.0", &[]).refused(2, &["lr", "-1"]);
    changed(&scene, "batch_size: 4", "batch_size: 400", &[]).refused(2, &["400", "200", "hint:"]);
    let ran = changed(&scene, "num_classes: 10", "num_classes: 3", &[]);
    ran.refused(2, &["`Model.num_classes` expected at least 4", "label of image", "got 3"]);
    changed(&scene, "ch: 32", "ch: 33", &[])
        .refused(2, &["`Model.ch`", "a multiple of 32, got 33"]);
    let ran = changed(&scene, "out_ch: 3", "out_ch: 1", &[]);
    ran.refused(2, &["`Model.out_ch` expected 3, the channels of an image, got 1"]);
    let ran =
        changed(&scene, "struc: 'DDIM'\n  image_size: 16", "struc: 'DDIM'\n  image_size: 32", &[]);
    ran.refused(2, &["`Model.image_size` expected the size of the images, 16x16, got 32", "hint:"]);
    for steps in ["0", "1001"] {
        scene.write("tiny.yml", DIFFUSION);
        let args = ["train", "diffusion", "--config", "tiny.yml", "--out", "run"];
        let ran = scene.run(&[&args[..], &["--sample-step", steps]].concat());
        ran.refused(2, &["`--sample-step` expected from 1 to 1000", "got"]);
    }
    let ran = scene.run(&["train", "diffusion", "--config", "nowhere.yml"]);
    ran.refused(96, &["nowhere.yml"]);
    scene.write("tiny.toml", "epoch = 3\n");
    let ran = scene.run(&classifier("run", &[]));
    ran.refused(2, &["unknown field `epoch`", "did you mean `epochs`?"]);
    scene.write("tiny.toml", "benchmark = \"glyphs\"\narch = \"resnet21\"\n");
    scene.run(&classifier("run", &[])).refused(2, &["`arch`", "got `resnet21`"]);
    assert!(!scene.path("run/train.safetensors").exists());
}

#[test]
fn numbers_and_devices_that_cannot_be_had() {
    let scene = scene();
    let ran = |more: &[&'static str]| scene.run(&diffusion("run", more));
    ran(&["--device", "cpu", "--precision", "bf16"])
        .refused(2, &["precision on the CPU expected `f32`, got `bf16`", "hint:"]);
    ran(&["--precision", "fp8"]).refused(2, &["precision expected `f32`, `tf32` or `bf16`", "fp8"]);
    ran(&["--device", "cpu,cuda:0"]).refused(2, &["`cuda:N` only, got `cpu,cuda:0`", "hint:"]);
    ran(&["--device", "cuda:0,cuda:1"]).refused(2, &["this build has no NCCL", "hint:"]);
    ran(&["--member", "2/2"]).refused(2, &["expected RANK/WORLD, got `2/2`"]);
    let ran = scene.run(&classifier("run", &["--device", "cpu", "--precision", "bf16"]));
    ran.refused(2, &["`--precision` of a classifier expected `f32` or `tf32`, got `bf16`"]);
    assert!(!scene.path("run/train.safetensors").exists());
}

#[test]
fn images_that_are_not_there() {
    let scene = scene();
    scene.write("empty/readme", "");
    scene.write("tiny.yml", DIFFUSION.replace("'glyphs'", "'CIFAR10'").replace("16\n", "32\n"));
    let ran = scene.run(&["train", "diffusion", "--config", "tiny.yml", "--data", "empty"]);
    ran.refused(96, &["find CIFAR10", "empty", "cifar-10-batches-bin", "hint:"]);
    scene.write("tiny.yml", DIFFUSION.replace("'glyphs'", "'LSUN'"));
    let ran = scene.run(&["train", "diffusion", "--config", "tiny.yml"]);
    ran.refused(2, &["`Dataset.name`", "got `LSUN`", "--benchmark"]);
}

#[test]
fn a_folder_that_holds_another_training() {
    let scene = scene();
    let short = ["--steps", "2", "--validate-every", "0"];
    let args = |more: &[&'static str]| {
        let mut args = vec!["train", "diffusion", "--config", "tiny.yml", "--benchmark", TOY];
        args.extend(["--out", "run"]);
        args.extend(short);
        args.extend(more);
        args
    };
    scene.run(&args(&["--restart"])).refused(96, &["there is no such file", "hint:"]);
    scene.run(&args(&[])).succeeded();
    let before = files(&scene.path("run"));
    scene.run(&args(&[])).refused(2, &["train.safetensors", "--restart"]);
    let ran = scene.run(&args(&["--restart", "--seed", "1"]));
    ran.refused(2, &["`seed` expected 0 as in the checkpoint, got 1", "hint:"]);
    scene.write("tiny.yml", DIFFUSION.replace("lr: 0.002", "lr: 0.003"));
    let ran = scene.run(&args(&["--restart"]));
    ran.refused(2, &["`Optim.lr` expected 0.002 as in the checkpoint, got 0.003"]);
    assert_eq!(files(&scene.path("run")), before);
    // Another length is no other training.
    scene.write("tiny.yml", DIFFUSION.replace("epoch: 1", "epoch: 2"));
    scene.run(&args(&["--restart"])).succeeded();
    scene.write("run/train.safetensors", b"no checkpoint");
    scene.run(&args(&["--restart"])).refused(96, &["train.safetensors", "safetensors"]);
}

#[test]
fn a_training_that_diverges_keeps_its_last_checkpoint() {
    let scene = scene();
    let absurd = DIFFUSION.replace("lr: 0.002", "lr: 1.0e+30").replace("warmup: 5", "warmup: 0");
    scene.write("tiny.yml", absurd);
    let ran = scene.run(&diffusion("run", &[]));
    ran.refused(100, &["expected a finite number", "train.safetensors", "hint:"]);
    let kept = std::fs::read(scene.path("run/train.safetensors")).unwrap();
    let bytes = safetensors::SafeTensors::deserialize(&kept).unwrap();
    let finite = bytes.tensors().iter().all(|(_, tensor)| {
        let (numbers, _) = tensor.data().as_chunks::<4>();
        numbers.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite())
    });
    assert!(finite, "the checkpoint holds numbers that are not finite");
    assert!(scene.read("run/info.txt").contains("failed: "));
}
