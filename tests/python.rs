//! The snippet of docs/features.md, run by the Python that people have: it exports a network, and the
//! bench scores what it wrote.
//!
//! It needs Python with PyTorch and numpy: `$OODBENCH_PYTHON`, or `python3`. So it is a target of its
//! own behind the feature `python`, which `.ci/run` turns on where there is one; where it is turned on
//! and there is none, it fails.

use std::path::PathBuf;
use std::process::Command;

use oodbench_tests::binary::Scene;
use serde_json::Value;

/// The Python that is asked for.
fn python() -> PathBuf {
    std::env::var_os("OODBENCH_PYTHON").unwrap_or_else(|| "python3".into()).into()
}

/// The first block of Python on the page.
fn snippet() -> &'static str {
    let page = include_str!("../docs/features.md");
    let (_, rest) = page.split_once("```python\n").expect("a block of Python");
    let (code, _) = rest.split_once("```").expect("the end of the block");
    code
}

/// Trains a small network, exports it, and prints what PyTorch itself says of it. The folder
/// `features` gets the export.
const PROGRAM: &str = r#"
import json
import torch
from export import export

torch.manual_seed(0)
torch.set_num_threads(1)
centres = torch.randn(4, 1, 6, 6)
net = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Dropout(0.5),
    torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 4), torch.nn.Identity(),
)

def images(n, noise=1.0):
    labels = torch.arange(n) % 4
    return centres[labels] + noise * torch.randn(n, 1, 6, 6), labels

def others(n, size):
    return size * torch.randn(n, 1, 6, 6), torch.full((n,), -1)

def batches(pair, size=37):
    return list(zip(pair[0].split(size), pair[1].split(size)))

optimiser = torch.optim.Adam(net.parameters(), 1e-2)
train = images(400)
for _ in range(60):
    for x, y in batches(train, 100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
sets = {
    "train": train, "val": images(120), "test": images(200), "ood_val": others(120, 1.0),
    "near/noise": others(150, 1.2), "far/flat": others(150, 0.2),
}
export(net, net[6], {name: batches(pair) for name, pair in sets.items()}, "features")
assert net.training, "the network is left as it was"

net.eval()
def confidence(pair):
    with torch.no_grad():
        return net(pair[0]).double().softmax(1).max(1).values

def auroc(id, ood):
    wins = (id[:, None] > ood[None]).double() + 0.5 * (id[:, None] == ood[None]).double()
    return wins.mean().item()

test = confidence(sets["test"])
with torch.no_grad():
    accuracy = (net(sets["test"][0]).argmax(1) == sets["test"][1]).double().mean().item()
print(json.dumps({
    "accuracy": accuracy,
    "near": auroc(test, confidence(sets["near/noise"])),
    "far": auroc(test, confidence(sets["far/flat"])),
}))
"#;

#[test]
fn what_the_snippet_exports_is_benched() {
    let scene = Scene::new();
    scene.write("export.py", snippet());
    let program = scene.write("program.py", PROGRAM);
    let output = Command::new(python())
        .arg(&program)
        .current_dir(scene.path(""))
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "start `{}`: {error}\n\nhint: OODBENCH_PYTHON names a Python with PyTorch and numpy",
                python().display()
            )
        });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", python().display());
    let theirs: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let ran = scene.run(&[
        "bench",
        "--features",
        "features",
        "--method",
        "all",
        "--message-format",
        "json",
        "--out",
        "run",
    ]);
    ran.succeeded();
    // The head and the features that the hook took give the logits, so nothing is warned of.
    assert!(!ran.stderr.contains("last linear layer"), "{}", ran.stderr);
    let board: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let close = |what: &str, ours: &Value, expected: &Value| {
        let (ours, expected) = (ours.as_f64().expect(what), expected.as_f64().expect(what));
        assert!((ours - expected).abs() < 1e-4, "{what}: expected {expected}, got {ours}");
    };
    close("accuracy", &board["accuracy"], &theirs["accuracy"]);
    let rows = board["rows"].as_array().expect("rows");
    let row = |id: &str| rows.iter().find(|row| row["id"] == id).expect(id);
    for group in ["near", "far"] {
        close(group, &row("msp")[group]["auroc"], &theirs[group]);
    }
    let n_done = rows.iter().filter(|row| row["status"] == "done").count();
    assert!(n_done >= 20, "{n_done} detectors are done");
    assert!(rows.iter().all(|row| row["status"] != "failed"), "{board}");
}
