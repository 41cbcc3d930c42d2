//! Classifiers of training methods, and the detectors that go with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use oodbench_nn::formula;
use oodbench_tests::binary::Scene;

const N_CLASSES: usize = 10;
const N_FEATURES: usize = 16;

type Shapes = BTreeMap<String, Vec<usize>>;

/// A tiny CIFAR ResNet without its last layer, its keys behind a prefix.
fn backbone(prefix: &str) -> Shapes {
    let mut shapes = Shapes::new();
    let mut block = |name: &str, conv: &str, c_in: usize, c_out: usize| {
        shapes.insert(format!("{prefix}{name}{conv}.weight"), vec![c_out, c_in, 3, 3]);
        let norm = conv.replace("conv", "bn");
        for what in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{prefix}{name}{norm}.{what}"), vec![c_out]);
        }
    };
    block("", "conv1", 3, 4);
    for (stage, (c_in, c_out)) in [(4, 4), (4, 8), (8, N_FEATURES)].into_iter().enumerate() {
        let name = format!("layer{}.0.", stage + 1);
        block(&name, "conv1", c_in, c_out);
        block(&name, "conv2", c_out, c_out);
    }
    shapes
}

/// A checkpoint of weights by formula, with linear layers of these outputs.
fn checkpoint(scene: &Scene, name: &str, mut shapes: Shapes, layers: &[(&str, usize)]) -> PathBuf {
    for &(key, outputs) in layers {
        shapes.insert(format!("{key}.weight"), vec![outputs, N_FEATURES]);
        shapes.insert(format!("{key}.bias"), vec![outputs]);
    }
    let tensor = |(key, shape): (String, Vec<usize>)| {
        let values = formula::weight(&key, &shape);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("values of this shape");
        (key, tensor)
    };
    let tensors: Vec<(String, Tensor)> = shapes.into_iter().map(tensor).collect();
    scene.write(name, safetensors::serialize(tensors, None).expect("weights in f32"))
}

fn confidence(scene: &Scene) {
    let layers = [("fc", N_CLASSES), ("confidence", 1)];
    checkpoint(scene, "confidence.safetensors", backbone("backbone."), &layers);
}

#[test]
fn a_head_of_its_own_is_scored_beside_the_classes() {
    let scene = Scene::new();
    confidence(&scene);
    let ran = scene.bench(&[
        "--classifier",
        "confidence.safetensors",
        "--method",
        "conf_branch,msp,rotpred",
    ]);
    ran.succeeded();
    for part in ["conf_branch", "msp"] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    let board = scene.read("run/leaderboard.md");
    assert!(board.contains("resnet8_width4 of Learning Confidence"), "{board}");
    assert!(board.contains("needs the further head `rotation`"), "{board}");
    // One score for each image, and not the same one.
    let scores = scene.read("run/scores/conf_branch.csv");
    let mut column: Vec<&str> =
        scores.lines().skip(1).filter_map(|l| l.split(',').next_back()).collect();
    column.sort_unstable();
    column.dedup();
    assert!(column.len() > 100, "{scores}");
}

#[test]
fn a_head_that_is_not_there_is_named_with_the_training_that_gives_it() {
    let scene = Scene::new();
    scene.bench(&["--method", "conf_branch"]).refused(
        4,
        &[
            "`conf_branch` needs the further head `confidence`",
            "training by Learning Confidence",
            "resnet20",
        ],
    );
    // All detectors leave it out, and say why.
    confidence(&scene);
    let all = |classifier: &[&str]| {
        scene.bench(&[&["--method", "all", "--dry-run"], classifier].concat())
    };
    let plain = all(&[]);
    plain.succeeded();
    let lines = |ran: &oodbench_tests::binary::Ran, id: &str| -> String {
        let text = format!("{}{}", ran.stdout, ran.stderr);
        text.lines().filter(|line| line.contains(id)).collect::<Vec<_>>().join("\n")
    };
    assert!(lines(&plain, "conf_branch").contains("needs the further head"), "{}", plain.stdout);
    assert!(lines(&plain, "cider").contains("training by CIDER"), "{}", plain.stdout);
    let own = all(&["--classifier", "confidence.safetensors"]);
    own.succeeded();
    assert!(!lines(&own, "conf_branch").contains("needs the further head"), "{}", own.stdout);
    assert!(lines(&own, "mcd").contains("needs the further head `logits2`"), "{}", own.stdout);
}

#[test]
fn an_embedding_has_neither_logits_nor_accuracy() {
    let scene = Scene::new();
    checkpoint(&scene, "cider.safetensors", backbone("backbone."), &[("head", 6)]);
    let classifier = ["--classifier", "cider.safetensors"];
    let ran = scene.bench(
        &[
            &classifier[..],
            &[
                "--method",
                "cider,reweightood,knn,msp,react",
                "--set",
                "cider.K=5",
                "--set",
                "knn.K=5",
            ],
        ]
        .concat(),
    );
    ran.succeeded();
    let csv = scene.read("run/leaderboard.csv");
    for id in ["cider", "reweightood", "knn"] {
        assert!(csv.lines().any(|line| line.starts_with(id)), "{id}\n{csv}");
    }
    let board = scene.read("run/leaderboard.md");
    assert!(board.contains("needs logits, and the classifier ("), "{board}");
    assert!(board.contains("accuracy unknown"), "{board}");
    scene.bench(&[&classifier[..], &["--method", "msp"]].concat()).refused(4, &["needs logits"]);
}

#[test]
fn groups_of_classes_are_read_from_the_classifiers_file() {
    let scene = Scene::new();
    checkpoint(&scene, "mos.safetensors", backbone(""), &[("linear", N_CLASSES + 2)]);
    let bench = |classifier| scene.bench(&["--classifier", classifier, "--method", "mos,msp"]);
    bench("mos.safetensors").refused(96, &["expected [10, 16], got [12, 16]", "groups = "]);
    let toml = |groups: &str| format!("weights = \"mos.safetensors\"\ngroups = {groups}\n");
    scene.write("twice.toml", toml("[[0, 1, 2], [2, 3, 4, 5, 6, 7, 8, 9]]"));
    bench("twice.toml").refused(96, &["`groups` expected each class from 0 to 9 once"]);
    scene.write("three.toml", toml("[[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]"));
    bench("three.toml").refused(96, &["expected [13, 16], got [12, 16]"]);
    scene.write("mos.toml", toml("[[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]"));
    let ran = bench("mos.toml");
    ran.succeeded();
    let board = scene.read("run/leaderboard.md");
    assert!(board.contains("| mos |") && board.contains("of MOS"), "{board}");
}

#[test]
fn a_baseline_alone_is_not_what_was_asked_for() {
    // The embedded benchmark runs `msp` beside whatever is named.
    let ran = Scene::new().run(&["bench", "--method", "conf_branch", "--out", "run"]);
    ran.refused(4, &["nothing to run", "`conf_branch` needs the further head `confidence`"]);
}
