//! Tests of the script for machines with a GPU that need neither a GPU nor Python: that bash can
//! read it, and what it refuses. Those of the Python scripts are `xtask/python/test_gpu.py`.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::workspace::Workspace;

fn script() -> PathBuf {
    Workspace::from_env().root.join("xtask/gpu/run.sh")
}

fn run(args: &[&str]) -> (i32, String) {
    let ran = Command::new("bash").arg(script()).args(args).output();
    let Output { status, stdout, stderr } = ran.expect("bash starts");
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.code().expect("no signal ends it"), text.concat())
}

#[test]
fn bash_can_read_the_script() {
    let output = Command::new("bash").arg("-n").arg(script()).output();
    let output = output.expect("bash starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_help_names_every_option() {
    let (code, help) = run(&["--help"]);
    assert_eq!(code, 0, "{help}");
    for option in ["minutes", "only", "out", "python", "images", "train", "mode", "stand-in"] {
        assert!(help.contains(&format!("--{option} ")), "{option} in\n{help}");
    }
}

#[test]
fn arguments_that_will_not_do_are_refused_before_anything_runs() {
    let refused = |args: &[&str], code: i32, part: &str| {
        let (got, said) = run(args);
        assert_eq!(got, code, "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    };
    refused(&["--what"], 2, "unexpected argument `--what`");
    refused(&["speed"], 2, "unexpected argument `speed`");
    refused(&["--minutes"], 2, "`--minutes` expected a value");
    for minutes in ["0", "x", "1.5", ""] {
        refused(&["--minutes", minutes], 2, "expected a whole number above 0");
    }
    refused(&["--only", "speed,sped"], 2, "--only expected parts or groups, got `sped`");
    refused(&["--only", ","], 2, "--only expected parts or groups, got `,`");
    refused(&["--mode", "fast"], 2, "--mode expected reduce-overhead or max-autotune, got `fast`");
    refused(&["--images", "/no/such"], 2, "--images expected a folder, got `/no/such`");
    refused(&["--python", "no-such-python"], 96, "`no-such-python` cannot import torch");
}
