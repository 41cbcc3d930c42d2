//! Everything that a user can get wrong: one clear line, a remedy, a documented exit code.

use oodbench_tests::binary::Scene;

/// A benchmark of image lists in the folder `data` of the scene, with one image file for all.
fn with_lists(scene: &Scene, image: &[u8], list: &str) {
    scene.write("data/images/a.png", image);
    scene.write("data/list.txt", list);
    let toy = include_str!("../fixtures/toy.toml");
    let near = "images = { kind = \"glyphs\", part = \"letters-test\", count = 60 }\nsize = 60";
    let own = "images = { kind = \"imglist\", list = \"list.txt\", root = \"images\" }";
    assert!(toy.contains(near));
    scene.write("own.toml", toy.replace(near, own));
}

fn bench_own(scene: &Scene, args: &[&str]) -> oodbench_tests::binary::Ran {
    let start =
        ["bench", "--method", "msp", "--benchmark", "own.toml", "--data", "data", "--out", "run"];
    scene.run(&[&start[..], args].concat())
}

#[test]
fn an_unknown_detector_parameter_or_benchmark() {
    let scene = Scene::new();
    scene.bench(&["--method", "reakt"]).refused(2, &["reakt", "did you mean `react`?"]);
    let ran = scene.bench(&["--method", "knn", "--set", "knn.k=5"]);
    ran.refused(2, &["parameter of `knn`", "got `k`", "did you mean `K`?"]);
    let ran = scene.bench(&["--method", "knn", "--set", "knn.K=five"]);
    ran.refused(2, &["parameter `K` of `knn`", "integer", "five"]);
    scene.bench(&["--method", "msp", "--set", "knn.K=5"]).refused(2, &["--set", "knn"]);
    scene.run(&["bench", "--method", "msp", "--benchmark", "cifar11"]).refused(2, &["cifar10"]);
}

#[test]
fn missing_images_and_what_allow_missing_does() {
    let scene = Scene::new();
    with_lists(&scene, b"x", "a.png -1\nb.png -1\n");
    let ran = bench_own(&scene, &[]);
    ran.refused(96, &["near/letters", "b.png", "line 2", "--allow-missing"]);
    let ran = bench_own(&scene, &["--allow-missing"]);
    ran.succeeded();
    assert!(ran.stdout.contains("near/letters"), "{}", ran.stdout);
}

#[test]
fn a_corrupt_image() {
    let scene = Scene::new();
    with_lists(&scene, b"\x89PNG\r\n\x1a\nnothing more", "a.png -1\n");
    bench_own(&scene, &[]).refused(96, &["a.png", "list.txt", "line 1"]);
}

#[test]
fn an_empty_list_and_a_broken_line() {
    let scene = Scene::new();
    with_lists(&scene, b"x", "");
    bench_own(&scene, &[]).refused(96, &["list.txt", "at least one image"]);
    with_lists(&scene, b"x", "a.png one\n");
    bench_own(&scene, &[]).refused(96, &["list.txt` line 1"]);
}

#[test]
fn a_truncated_archive() {
    let scene = Scene::new();
    with_lists(&scene, b"x", "pics/a.png -1\n");
    scene.write("data/images/pics.zip", b"PK\x03\x04 and no more");
    bench_own(&scene, &[]).refused(96, &["pics.zip", "hint:"]);
}

#[test]
fn weights_that_do_not_fit() {
    let scene = Scene::new();
    scene.write("weights.pth", b"these are no weights at all");
    let ran = scene.bench(&["--method", "msp", "--classifier", "weights.pth"]);
    ran.refused(96, &["weights.pth", "safetensors or a PyTorch file"]);
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../datasets/benchmarks/glyphs/classifier.safetensors"
    );
    let ran = scene.bench(&["--method", "msp", "--classifier", &format!("resnet18_32x32:{own}")]);
    ran.refused(
        96,
        &["classifier.safetensors", "expected architecture `resnet18_32x32`", "resnet20"],
    );
    let toy = include_str!("../fixtures/toy.toml").replace("classes = 10", "classes = 12");
    scene.write("twelve.toml", toy);
    let ran =
        scene.run(&["bench", "--method", "msp", "--benchmark", "twelve.toml", "--out", "run"]);
    ran.refused(96, &["[12, 64]", "[10, 64]"]);
    let ran = scene.bench(&["--method", "msp", "--classifier", "nowhere.pt"]);
    ran.refused(96, &["nowhere.pt"]);
}

#[test]
fn weights_with_a_nan() {
    let scene = Scene::new();
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../datasets/benchmarks/glyphs/classifier.safetensors"
    );
    let mut bytes = std::fs::read(own).unwrap();
    // The last value of the file, whatever its width.
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    let path = scene.write("nan.safetensors", bytes);
    let ran = scene.bench(&["--method", "msp", "--classifier", path.to_str().unwrap()]);
    ran.refused(96, &["nan.safetensors", "expected finite values"]);
}

#[test]
fn a_run_folder_that_cannot_be_written_to() {
    let scene = Scene::new();
    scene.write("file", "in the way");
    let toy = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/toy.toml");
    let ran = scene.run(&["bench", "--method", "msp", "--benchmark", toy, "--out", "file/run"]);
    ran.refused(110, &["file/run"]);
}

#[test]
fn a_full_disk() {
    // A device that is always full stands for the disk.
    if !std::path::Path::new("/dev/full").exists() {
        panic!("this test needs /dev/full");
    }
    let scene = Scene::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = scene.command(&["plugin", "list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(110));
    assert!(String::from_utf8_lossy(&output.stderr).contains("write to stdout"));
}

#[test]
fn a_device_that_has_no_such_name() {
    let scene = Scene::new();
    scene.bench(&["--method", "msp", "--device", "tpu"]).refused(2, &["tpu", "cpu"]);
}

#[test]
fn more_threads_than_a_system_bears() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "msp", "--threads", "100000"]);
    ran.refused(2, &["`--threads` expected from 1 to 1024, got 100000"]);
}

#[test]
fn no_method_at_all() {
    Scene::new().bench(&[]).refused(2, &["--method", "hint:"]);
}
