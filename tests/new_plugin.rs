//! `cargo xtask new-plugin`, and the page that leads from there to a row in the leaderboard: its
//! commands are run as they stand.
//!
//! They run with the build of the tests instead of a release (`--dev`), without the network, on some
//! images of each set, and with a list of plugins of their own. Their packs are staged where other
//! tests look for packs, so this is a target of its own, and takes them away again.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use oodbench_tests::binary::{Ran, Scene, target};

/// One test at a time stages packs.
static STAGING: Mutex<()> = Mutex::new(());

/// What a line of the page means here: a shell function in the place of cargo.
const CARGO: &str = r#"
cargo() {
    case "$1 $2" in
        "xtask new-plugin") shift; "$XTASK" --dev "$@" --path "../$2" ;;
        "xtask bench") shift; "$XTASK" --dev "$@" --limit 20 --out "../run" ;;
        "xtask "*) shift; "$XTASK" --dev "$@" ;;
        *) "$CARGO" "$@" ;;
    esac
}
"#;

/// A user's desk: a folder in which commands are typed, and a list of plugins.
struct Desk {
    scene: Scene,
    /// Where packs are staged.
    packs: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Desk {
    fn new() -> Self {
        let alone = STAGING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let scene = Scene::new();
        std::fs::create_dir(scene.path("checkout")).unwrap();
        Self { scene, packs: target().join("packs"), _alone: alone }
    }

    /// A program at the desk.
    fn program(&self, program: impl Into<PathBuf>) -> Command {
        let xtask = target().join("xtask");
        assert!(xtask.is_file(), "no `{}`\n\nhint: `cargo xtask test` builds it", xtask.display());
        let mut command = Command::new(program.into());
        command
            .current_dir(self.scene.path("checkout"))
            .env("XTASK", xtask)
            .env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .env("CARGO_TARGET_DIR", target().parent().expect("the build folder"))
            .env("CARGO_NET_OFFLINE", "true")
            .env("OODBENCH_OWN_PLUGINS", self.scene.path("own.txt"))
            .env("OODBENCH_CACHE_DIR", self.scene.path("cache"))
            .env_remove("OODBENCH_PLUGIN_PATH");
        command
    }

    /// `cargo xtask` with these arguments.
    fn xtask(&self, args: &[&str]) -> Ran {
        let mut command = self.program(target().join("xtask"));
        Ran::of(command.arg("--dev").args(args).output().expect("xtask starts"))
    }

    /// A line of the page, in a shell.
    fn line(&self, line: &str) -> Ran {
        let mut command = self.program("sh");
        // In the folder of the plugin cargo finds by itself where it builds.
        command.arg("-c").arg(format!("{CARGO}\n{line}"));
        if !line.contains("xtask") {
            command.env_remove("CARGO_TARGET_DIR");
        }
        Ran::of(command.output().expect("sh starts"))
    }

    /// Changes a file of the desk.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.scene.read(file);
        assert!(text.contains(from), "no `{from}` in {file}");
        self.scene.write(file, text.replace(from, to));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.packs).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("own-") {
                // What stays is taken away by the next `cargo xtask test`.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The blocks of code of a page that name a language, in order.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = page.split("```").collect();
    let fenced = parts.iter().skip(1).step_by(2);
    let blocks: Vec<_> = fenced.filter_map(|part| part.split_once('\n')).collect();
    assert!(blocks.iter().all(|(language, _)| ["sh", "rust"].contains(language)), "{blocks:?}");
    blocks
}

#[test]
fn every_command_of_the_page_for_new_detectors_does_what_it_says() {
    let desk = Desk::new();
    let page = include_str!("../docs/new-detector.md");
    let mut kinds = Vec::new();
    for (language, text) in blocks(page) {
        if language == "rust" {
            // The file that the page starts from is there, and is replaced.
            assert!(desk.scene.read("logit-gap/src/lib.rs").contains("pub struct LogitGap"));
            desk.scene.write("logit-gap/src/lib.rs", text);
            kinds.push("rust");
            continue;
        }
        for line in text.lines() {
            let ran = desk.line(line);
            assert_eq!(ran.code, 0, "{line}\n{}\n{}", ran.stdout, ran.stderr);
            if line.contains("xtask bench") {
                let row = ran.stdout.lines().find(|row| row.starts_with("logit-gap"));
                // What `--limit` leaves of a row that is done.
                let scored = row.is_some_and(|row| row.ends_with("partial"));
                assert!(scored, "{line}\n{}", ran.stdout);
                kinds.push("bench");
            } else if line.contains("plugin check") {
                let passed = ran.stdout.contains("ok:") && !ran.stdout.contains("FAILED");
                assert!(passed, "{line}\n{}", ran.stdout);
                kinds.push("check");
            } else if line.contains("cargo test") {
                assert!(ran.stdout.contains("test result: ok. 1 passed"), "{}", ran.stdout);
                kinds.push("test");
            } else {
                assert!(line.contains("new-plugin"), "what does `{line}` do?");
                assert!(ran.stderr.contains("cargo xtask plugin check logit-gap"));
                kinds.push("new");
            }
        }
    }
    let all = ["new", "check", "bench", "rust", "test", "check", "bench", "bench", "bench"];
    assert_eq!(kinds, all);
}

#[test]
fn plugins_that_come_change_their_ids_break_and_vanish() {
    let desk = Desk::new();
    let made = |name: &str, path: &str| {
        let ran = desk.xtask(&["new-plugin", name, "--path", path]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout, "", "what xtask says is no data");
    };
    // The name of a type of the SDK, and a folder of another name.
    made("matrix", "../deep/er/one");
    made("second_one", "../two");
    let lock = desk.scene.read("two/Cargo.lock");
    let ours = include_str!("../Cargo.lock");
    for package in lock.split("[[package]]").filter(|package| package.contains("checksum")) {
        // Name, version and checksum; what it depends on is said as briefly as is unambiguous.
        let package = package.split("dependencies").next().unwrap_or_default().trim();
        assert!(ours.contains(package), "{package}");
    }
    assert!(!lock.contains("candle"), "what a plugin does not use is not in its lock file");

    desk.edit("two/src/lib.rs", "id: \"second_one\"", "id: \"renamed\"");
    let ran = desk.xtask(&["plugin", "list"]);
    ran.succeeded();
    for id in ["matrix", "renamed", "msp"] {
        assert!(ran.stdout.contains(&format!("  {id} ")), "{id}\n{}", ran.stdout);
    }
    // By the name of the pack, which it has kept, and by the id.
    for name in ["second_one", "renamed"] {
        let ran = desk.xtask(&["plugin", "check", name]);
        ran.succeeded();
        assert!(ran.stdout.starts_with("renamed "), "{}", ran.stdout);
    }
    desk.xtask(&["plugin", "check", "second"]).refused(2, &["`second`", "hint:"]);

    // A folder that is gone is one line, and so are its detectors.
    std::fs::remove_dir_all(desk.scene.path("deep")).unwrap();
    let ran = desk.xtask(&["plugin", "list"]);
    ran.succeeded();
    assert!(!ran.stdout.contains("matrix"), "{}", ran.stdout);
    assert!(ran.stdout.contains("  renamed "), "{}", ran.stdout);
    let warnings: Vec<&str> = ran.stderr.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(warnings.len(), 1, "{}", ran.stderr);
    assert!(warnings[0].contains("deep/er/one") && warnings[0].contains("own.txt"), "{warnings:?}");

    // Nothing is benched with an older build of what does not build.
    desk.edit("two/src/lib.rs", "fn soft_minimum", "fn hard_minimum");
    let ran = desk.xtask(&["bench", "--method", "renamed"]);
    assert_eq!(ran.code, 101, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not build"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint:"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_a_plugin_is_refused() {
    let desk = Desk::new();
    let refused = |args: &[&str], part: &str| {
        desk.xtask(&[&["new-plugin"], args].concat()).refused(2, &[part, "hint: "]);
    };
    refused(&["My-Detector"], "lower-case");
    refused(&["match"], "a word of Rust's");
    refused(&["knn"], "`knn` is a detector of oodbench");
    refused(&["mine", "--path", concat!(env!("CARGO_MANIFEST_DIR"), "/mine")], "inside of the");
    desk.scene.write("full/file", "");
    refused(&["mine", "--path", "../full"], "expected a new or an empty folder");
    desk.scene.write("file", "");
    desk.xtask(&["new-plugin", "mine", "--path", "../file/mine"]).refused(110, &["file/mine"]);
    assert!(!desk.scene.path("own.txt").exists(), "nothing was made, and nothing is on the list");
    let left: Vec<_> = std::fs::read_dir(desk.scene.path("")).unwrap().flatten().collect();
    assert_eq!(left.len(), 3, "the checkout, `full` and `file`: {left:?}");
}
