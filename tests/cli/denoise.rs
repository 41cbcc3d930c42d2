//! `oodbench denoise`: samples as files, the table of them, and the strip.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use candle_core::{Device, Tensor};
use oodbench_diffusion::denoise::samples::SampleFile;
use oodbench_diffusion::denoise::{Change, Mode, Space};
use oodbench_diffusion::picture::{Picture, Range};
use oodbench_nn::npz::{Npz, NpzWriter, Values};
use oodbench_tests::binary::{Ran, Scene};

/// Samples of a few images of the embedded benchmark, seconds long.
fn save(scene: &Scene, more: &[&str]) -> Ran {
    scene.run(&save_args(more))
}

fn save_args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let settings =
        "denoise save --out samples --limit 4 --steps 5 --repeats 2 --timesteps 0,240,400";
    settings.split(' ').chain(more.iter().copied()).collect()
}

fn files(scene: &Scene) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(scene.path("samples")).expect("a folder");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn samples_are_saved_kept_and_tabled() {
    let scene = Scene::new();
    let ran = save(&scene, &[]);
    ran.succeeded();
    let expected = ["digits", "letters", "textures", "noise"];
    let expected = expected.map(|set| format!("samples/digits_{set}_r2.npz"));
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), expected, "{}", ran.stderr);
    let mut npz = Npz::open(&scene.path("samples/digits_letters_r2.npz")).unwrap();
    assert_eq!(npz.names(), ["imgr", "feature", "logit"]);
    let images = npz.read("imgr").unwrap();
    assert_eq!(images.shape, [3, 8, 3, 16, 16]);
    assert!(images.to_f32().iter().all(|x| (0.0..=1.0).contains(x)));
    assert_eq!(npz.shape("feature").unwrap(), [3, 8, 64]);
    assert_eq!(npz.shape("logit").unwrap(), [3, 8, 10]);

    let first = files(&scene);
    let again = save(&scene, &[]);
    again.succeeded();
    assert_eq!(again.stderr.matches(": kept").count(), 4, "{}", again.stderr);
    std::fs::remove_file(scene.path("samples/digits_noise_r2.npz")).unwrap();
    let rest = save(&scene, &[]);
    assert_eq!(rest.stderr.matches(": kept").count(), 3, "{}", rest.stderr);
    assert!(files(&scene) == first, "the same settings gave other bytes");
    let other = save(&scene, &["--beta", "1"]);
    other.refused(96, &["digits_digits_r2.npz", "`beta` expected 1.0, got 2.0", "--force"]);
    save(&scene, &["--beta", "1", "--force", "--set-names", "noise"]).succeeded();
    assert!(files(&scene) != first);

    let table = scene.run(&["denoise", "table", "samples", "--repeats", "2"]);
    table.succeeded();
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{}", table.stdout);
    assert!(lines[0].starts_with("| name     | base"), "{}", table.stdout);
    let args = ["denoise", "table", "samples", "--repeats", "2", "--set-names", "noise"];
    let csv = scene.run(&[&args[..], &["--space", "imgr", "--format", "csv"]].concat());
    assert_eq!(csv.stdout.lines().count(), 1 + 4, "{}", csv.stdout);
    assert!(csv.stdout.contains("\ndigits,noise,image,global,2,"), "{}", csv.stdout);
    let json = scene.run(&[&args[..], &["--format", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["rows"][0]["n_images"], 4, "{json}");
}

#[test]
fn samples_and_the_detector_give_the_same_scores() {
    let scene = Scene::new();
    let settings = ["steps=5", "repeats=2", "timesteps=[0,240,400]", "beta=2", "space=logit"];
    let settings: Vec<String> = settings.iter().map(|it| format!("--set=diffood.{it}")).collect();
    let mut args = vec!["bench", "--method", "diffood", "--no-baselines", "--limit", "4"];
    args.extend(["--out", "run"]);
    args.extend(settings.iter().map(String::as_str));
    scene.run(&args).succeeded();
    save(&scene, &["--set-names", "letters,digits=own"]).succeeded();
    let scores = scene.read("run/scores/diffood.csv");
    for (file, set) in [("own_letters_r2.npz", "letters,"), ("own_own_r2.npz", "digits,")] {
        let mut samples = SampleFile::open(&scene.path("samples").join(file), 2).unwrap();
        // The preset of the benchmark looks at the second timestep after the first.
        let change = Change { mode: Mode::Global, nth: 2 };
        let ours = samples.scores(Space::Logit, &[change]).unwrap().concat();
        let of_set = scores.lines().filter(|line| line.starts_with(set));
        let of_bench: Vec<f32> = of_set
            .map(|line| line.rsplit(',').next().and_then(|x| x.parse().ok()).expect("a score"))
            .collect();
        assert_eq!(ours, of_bench, "{set}\n{scores}");
    }
}

#[test]
fn a_killed_save_goes_on_to_the_same_files() {
    let whole = Scene::new();
    save(&whole, &[]).succeeded();
    let scene = Scene::new();
    for delay_ms in [200, 700] {
        let mut child = scene
            .command(&save_args(&[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let _ = child.kill();
        child.wait().unwrap();
    }
    // What is left by a process that was killed while it put a file together is swept away.
    let old = scene.write("samples/.partial-old", "half");
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 86_400);
    std::fs::File::options().write(true).open(old).unwrap().set_modified(long_ago).unwrap();
    save(&scene, &[]).succeeded();
    let mut left = files(&scene);
    assert!(left.iter().all(|(name, _)| name != ".partial-old"));
    // A younger one may be that of another `save`.
    left.retain(|(name, _)| !name.starts_with(".partial-"));
    assert!(left == files(&whole));
}

/// A file as the reference writes it, with `f64` logits of one repeat.
fn logits(path: &Path, shape: &[usize], values: &[f64]) {
    let mut npz = NpzWriter::create(path).unwrap();
    npz.array("logit", shape, Values::F64(values)).unwrap();
    npz.finish().unwrap();
}

#[test]
fn the_table_of_given_numbers() {
    let scene = Scene::new();
    // Two timesteps, two images: the second ID image turns by 90 degrees, the first stays.
    let id = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    // One turns all the way, one by 45 degrees.
    let ood = [1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 3.0, 3.0];
    logits(&scene.path("s/a_b_a_b_r1.npz"), &[2, 2, 2], &id);
    logits(&scene.path("s/a_b_ood_r1.npz"), &[2, 2, 2], &ood);
    let ran = scene.run(&["denoise", "table", "s", "--repeats", "1"]);
    ran.succeeded();
    // Changes are 0 and 2 against 2 and 1: of four pairs two are won, one is a tie.
    let expected = "\
| name | base  | 1           |
| ---- | ----- | ----------- |
| ood  | 62.50 | 62.50/62.50 |
| avg  | 62.50 | 62.50/62.50 |
";
    assert_eq!(ran.stdout, expected);
    let args = ["denoise", "table", "s", "--repeats", "1", "--format", "csv", "--id", "a_b"];
    let csv = scene.run(&args).stdout;
    assert!(csv.contains("a_b,ood,logit,local,1,62.50,50.00,2,2\n"), "{csv}");
}

#[test]
fn samples_that_cannot_be_used() {
    let scene = Scene::new();
    let table = |more: &[&str]| {
        let start = ["denoise", "table", "s", "--repeats", "1"];
        scene.run(&[&start[..], more].concat())
    };
    table(&[]).refused(96, &["`s`", "No such file"]);
    logits(&scene.path("s/a_a_r1.npz"), &[2, 2, 2], &[1.0; 8]);
    table(&[]).refused(96, &["`s`", "files of OOD sets"]);
    table(&["--set-names", "b"]).refused(96, &["`a_b_r1.npz`", "got `a_a_r1.npz`"]);
    table(&["--id", "c"]).refused(96, &["`c_c_r1.npz`", "hint:"]);
    table(&["--repeats", "2"]).refused(2, &["--repeats"]);
    // Three timesteps against two; three rows for two repeats; one number a timestep.
    logits(&scene.path("s/a_b_r1.npz"), &[3, 2, 2], &[1.0; 12]);
    table(&[]).refused(96, &["a_b_r1.npz", "expected 2 timesteps", "got 3"]);
    logits(&scene.path("s/a_b_r1.npz"), &[2, 2], &[1.0; 4]);
    table(&[]).refused(96, &["a_b_r1.npz", "`logit`", "got [2, 2]"]);
    logits(&scene.path("s/a_a_r2.npz"), &[2, 3, 2], &[1.0; 12]);
    let ran = scene.run(&["denoise", "table", "s", "--repeats", "2", "--id", "a"]);
    ran.refused(96, &["files of OOD sets"]);
    logits(&scene.path("s/a_b_r2.npz"), &[2, 4, 2], &[1.0; 16]);
    let ran = scene.run(&["denoise", "table", "s", "--repeats", "2", "--id", "a"]);
    ran.refused(96, &["a_a_r2.npz", "2 repeats of each image", "got [2, 3, 2]", "hint:"]);
    // The files of the run above are there, but not with four repeats.
    let ran = scene.run(&["denoise", "table", "s"]);
    ran.refused(96, &["a file `ID_ID_r4.npz`", "hint: `--repeats 1`"]);
    logits(&scene.path("s/a_b_r1.npz"), &[2, 2, 3], &[1.0; 12]);
    table(&[]).refused(96, &["a_b_r1.npz", "expected 2 values in a row of `logit`", "got 3"]);
    let mut values = [1.0; 8];
    values[5] = f64::NAN;
    logits(&scene.path("s/a_b_r1.npz"), &[2, 2, 2], &values);
    table(&[]).refused(96, &["a_b_r1.npz", "finite", "row 0 of timestep 1"]);
    table(&["--space", "feature"]).refused(96, &["a_a_r1.npz", "`feature`", "got `logit`"]);
    let bytes = std::fs::read(scene.path("s/a_a_r1.npz")).unwrap();
    scene.write("s/a_b_r1.npz", &bytes[..bytes.len() / 2]);
    table(&[]).refused(96, &["a_b_r1.npz", "npz file"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scene = Scene::new();
    save(&scene, &["--set-names", "letters=x,noise=x"]).refused(2, &["`x` twice", "hint:"]);
    save(&scene, &["--set-names", "leters"]).refused(2, &["leters", "did you mean `letters`?"]);
    save(&scene, &["--set-names", "letters=a/b"]).refused(2, &["--set-names", "letters=a/b"]);
    save(&scene, &["--batch-size", "65537"]).refused(2, &["--batch-size", "from 1 to 65536"]);
    let ran = scene.run(&["denoise", "save", "--out", "samples", "--repeats", "100000000000"]);
    ran.refused(2, &["--repeats", "from 1 to 65536"]);
    scene.write("here/digits_digits_r2.npz", "no samples");
    scene.write("file", "in the way");
    let save_to = |out: &str| {
        let settings = ["--set-names", "digits", "--limit", "4", "--repeats", "2"];
        scene.run(&[&["denoise", "save", "--out", out][..], &settings].concat())
    };
    save_to("here").refused(96, &["digits_digits_r2.npz", "npz file", "hint: `--force`"]);
    save_to("file").refused(110, &["`file`", "expected a folder, got a file"]);
    save(&scene, &["--weights", "missing.ckpt"]).refused(96, &["missing.ckpt"]);
    let strip = |more: &[&str]| scene.run(&[&["denoise", "strip"][..], more].concat());
    strip(&["--timesteps", "240,0"]).refused(2, &["--timesteps", "[240, 0]"]);
    strip(&["--timesteps", "0,1000"]).refused(2, &["timesteps below 1000", "got 1000"]);
    strip(&["--method", "EULER"]).refused(2, &["PNDM4"]);
    scene.write("a.png", "no image");
    strip(&["a.png"]).refused(96, &["a.png"]);
    assert!(!scene.path("samples").exists() && !scene.path("strip.png").exists());
}

#[test]
fn a_strip_takes_photographs_of_any_size() {
    let scene = Scene::new();
    for (name, height, width) in [("a.png", 1, 1), ("b.png", 90, 2000), ("c.png", 16, 16)] {
        let image = Tensor::full(0.5f32, (1, 3, height, width), &Device::Cpu).unwrap();
        scene.write(name, Picture::each(&image, Range::Unit).unwrap()[0].png().unwrap());
    }
    scene.write("empty.png", "");
    let settings = ["--steps", "5", "--timesteps", "0,240"];
    let strip =
        |images: &[&str]| scene.run(&[&["denoise", "strip"][..], images, &settings].concat());
    let ran = strip(&["a.png", "b.png", "c.png"]);
    ran.succeeded();
    let numbers = |line: &str| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
    assert_eq!(ran.stdout.lines().count(), 4, "{}", ran.stdout);
    // Grey is grey at any size; the noise belongs to the name.
    let alone = strip(&["c.png"]).stdout;
    assert_eq!(numbers(ran.stdout.lines().nth(3).unwrap()), numbers(alone.lines().nth(1).unwrap()));
    strip(&["empty.png"]).refused(96, &["empty.png", "got an empty file"]);
}

#[test]
fn a_strip_shows_images_and_prints_their_changes() {
    let scene = Scene::new();
    let image = Tensor::full(0.5f32, (1, 3, 16, 16), &Device::Cpu).unwrap();
    let png = Picture::each(&image, Range::Unit).unwrap()[0].png().unwrap();
    scene.write("grey.png", &png);
    let args = ["denoise", "strip", "grey.png", "--steps", "5", "--timesteps", "0,240"];
    let ran = scene.run(&[&args[..], &["--out", "new/strip.png"]].concat());
    ran.succeeded();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.stdout);
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["image", "class", "image@240", "feature@240", "logit@240"]
    );
    assert!(lines[1].starts_with("grey.png "), "{}", ran.stdout);
    let strip = std::fs::read(scene.path("new/strip.png")).unwrap();
    let size = |at: usize| u32::from_be_bytes(strip[at..at + 4].try_into().unwrap());
    // Five pictures of 16 pixels, four times as large, with two pixels around each.
    assert_eq!([size(16), size(20)], [5 * 66 + 2, 66 + 2]);
    assert!(ran.stderr.contains("noised at 240, denoised from 240"), "{}", ran.stderr);
}
