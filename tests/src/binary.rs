//! Runs the binary as a user does, in an environment of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A folder for one test: its cache, its runs, its files. Vanishes with the value.
pub struct Scene {
    folder: tempfile::TempDir,
}

/// The folder of the built binary and its packs.
///
/// # Panics
/// When they were not built: `cargo xtask test` does that first.
pub fn target() -> PathBuf {
    // target/debug/deps/NAME-HASH, the running test.
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE").to_owned();
    for file in ["oodbench", "packs/libposthoc.so", "libfaulty.so"] {
        assert!(
            folder.join(file).is_file(),
            "no `{}`\n\nhint: run the tests with `cargo xtask test`, which builds it first",
            folder.join(file).display()
        );
    }
    folder
}

impl Scene {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the scene.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// The binary with these arguments, in the folder of the scene.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(target().join("oodbench"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("OODBENCH_CACHE_DIR", self.path("cache"))
            .env("COLUMNS", "120");
        command
    }

    /// Runs the binary.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the binary starts"))
    }

    /// `bench` on the toy benchmark, seconds long, with further arguments.
    pub fn bench(&self, args: &[&str]) -> Ran {
        self.run(&self.bench_args(args).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The arguments of [`Scene::bench`].
    pub fn bench_args(&self, args: &[&str]) -> Vec<String> {
        let toy = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/toy.toml");
        let start = ["bench", "--benchmark", toy, "--out", "run"];
        start.iter().chain(args).map(|&arg| arg.to_owned()).collect()
    }

    /// A file of the scene as text.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Ran {
    /// How a program ended.
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The command was refused: this exit code, and one `error:` line that holds every part.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "expected `{part}` in\n{}", self.stderr);
        }
    }

    /// The command ended well.
    #[track_caller]
    pub fn succeeded(&self) {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
    }
}
