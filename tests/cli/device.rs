//! `--device`, `--precision` and `--batch-size` on a machine without a GPU, by a build with or
//! without CUDA.

use oodbench_tests::binary::{Ran, Scene, target};

/// The line that says why `auto` is the CPU, with one of the reasons that there are without a GPU.
#[track_caller]
fn says_why(ran: &Ran) {
    ran.succeeded();
    let line = ran.stderr.lines().find(|line| line.starts_with("device cpu: "));
    let line = line.unwrap_or_else(|| panic!("no line about the device in\n{}", ran.stderr));
    let reasons = ["this build has no CUDA", "no CUDA driver on this machine", "shows no GPU"];
    assert!(reasons.iter().any(|reason| line.contains(reason)), "{line}");
}

#[test]
fn auto_runs_on_the_cpu_and_says_why() {
    let scene = Scene::new();
    says_why(&scene.bench(&["--method", "msp", "--device", "auto"]));
    let run: serde_json::Value = serde_json::from_str(&scene.read("run/run.json")).unwrap();
    assert_eq!(run["machine"]["device"], "cpu");
    assert!(run["machine"].get("gpu").is_none(), "{run}");
    says_why(&scene.run(&["sample", "--n", "1", "--steps", "2", "--device", "auto"]));
}

#[test]
fn a_cpu_that_was_asked_for_is_nothing_to_talk_about() {
    let ran = Scene::new().bench(&["--method", "msp", "--device", "cpu"]);
    ran.succeeded();
    assert!(!ran.stderr.contains("device cpu"), "{}", ran.stderr);
}

#[test]
fn a_gpu_that_is_not_there_is_one_line_with_a_remedy() {
    let scene = Scene::new();
    let parts = ["use device `cuda:0`", "hint: ", "--device cpu"];
    scene.bench(&["--method", "msp", "--device", "cuda:0"]).refused(96, &parts);
    scene.run(&["sample", "--n", "1", "--device", "cuda:0"]).refused(96, &parts);
    scene.run(&["denoise", "strip", "--device", "cuda:0"]).refused(96, &parts);
    let ran = scene.bench(&["--method", "msp", "--device", "gpu"]);
    ran.refused(2, &["`auto`, `cpu`, `cuda` or `cuda:N`, got `gpu`"]);
    let train = ["train", "classifier", "--config", "x.toml", "--device", "cuda:0,cuda:1"];
    scene.run(&train).refused(2, &["classifier expected one, got `cuda:0,cuda:1`", "hint: "]);
    scene.run(&["train", "embedded", "--device", "cuda:0"]).refused(96, &parts);
}

#[test]
fn the_cpu_has_one_precision() {
    let scene = Scene::new();
    let on_cpu = ["precision on the CPU expected `f32`, got `tf32`", "hint: "];
    let bench = ["--method", "msp", "--device", "cpu"];
    scene.bench(&[&bench[..], &["--precision", "tf32"]].concat()).refused(2, &on_cpu);
    let sample = ["sample", "--n", "1", "--device", "cpu", "--precision", "tf32"];
    scene.run(&sample).refused(2, &on_cpu);
    let ran = scene.bench(&[&bench[..], &["--precision", "bf16"]].concat());
    ran.refused(2, &["expected `f32` or `tf32`"]);
    let diffood = ["--method", "diffood", "--device", "cpu", "--set", "diffood.untrained=true"];
    let ran = scene.bench(&[&diffood[..], &["--set", "diffood.precision=bf16"]].concat());
    ran.refused(2, &["create `diffood`", "`precision` expected f32 on the CPU, got `bf16`"]);
}

#[test]
fn an_automatic_batch_is_the_default_on_the_cpu() {
    let scores = |batch: &str, batch_size: &str| {
        let scene = Scene::new();
        let batch = format!("diffood.batch={batch}");
        let args = [
            "--method",
            "diffood",
            "--no-baselines",
            "--device",
            "cpu",
            "--limit",
            "2",
            "--set",
            "diffood.untrained=true",
            "--set",
            "diffood.steps=5",
            "--set",
            "diffood.repeats=1",
            "--set",
            &batch,
            "--batch-size",
            batch_size,
        ];
        scene.bench(&args).succeeded();
        scene.read("run/scores/diffood.csv")
    };
    assert_eq!(scores("auto", "auto"), scores("64", "128"));
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "msp", "--batch-size", "many"]);
    ran.refused(2, &["--batch-size", "a number from 1, or `auto`"]);
    let ran = scene.bench(&["--method", "diffood", "--set", "diffood.batch=many"]);
    ran.refused(2, &["`batch` of `diffood`", "integer or `auto`"]);
    let ran = scene.run(&["sample", "--n", "1", "--batch-size", "0"]);
    ran.refused(2, &["--batch-size", "from 1 to 65536, or `auto`"]);
}

#[test]
fn a_pack_says_what_it_was_built_for() {
    let scene = Scene::new();
    let inspect = |pack: &str| {
        let path = target().join(pack);
        let ran = scene.run(&["plugin", "inspect", path.to_str().unwrap()]);
        ran.succeeded();
        ran.stdout.lines().next().unwrap_or_default().to_owned()
    };
    assert!(inspect("packs/libposthoc.so").ends_with("built for CPU"));
    assert!(inspect("packs/libdiffood.so").contains("built for CPU"));
}
