//! What the environment says: folders, threads, the terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use oodbench_datasets::{Benchmark, builtin, builtins};
use oodbench_engine::EngineError;
use oodbench_engine::pack::SearchPath;
use oodbench_engine::supervise::WorkerCommand;

use crate::exit::{Failure, SETUP};

/// This binary, as a worker.
pub(crate) fn worker() -> Result<WorkerCommand, Failure> {
    Ok(WorkerCommand { program: binary()?, args: vec!["worker".to_owned()] })
}

fn binary() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure {
        message: format!("find this program: {error}"),
        hint: None,
        code: SETUP,
    })
}

/// Where packs are looked for.
pub(crate) fn search_path(named: &[PathBuf]) -> Result<SearchPath, Failure> {
    let mut search = SearchPath::default().named(named.iter().cloned());
    if let Some(value) = std::env::var_os("OODBENCH_PLUGIN_PATH") {
        search = search.environment(&value);
    }
    Ok(search.beside(&binary()?))
}

/// The folder for prepared images and features.
pub(crate) fn cache(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    of("OODBENCH_CACHE_DIR")
        .or_else(|| Some(of("XDG_CACHE_HOME")?.join("oodbench")))
        .or_else(|| Some(of("HOME")?.join(".cache/oodbench")))
        .ok_or_else(|| {
            let hint = "name a folder with `--cache` or OODBENCH_CACHE_DIR";
            Failure::usage("find a folder for the cache: no HOME", Some(hint.to_owned()))
        })
}

/// A benchmark by name or file, and the folder where its relative paths start.
pub(crate) fn benchmark(named: &str) -> Result<(Benchmark, PathBuf), Failure> {
    if let Some(builtin) = builtin(named) {
        return Ok((builtin.benchmark()?, PathBuf::new()));
    }
    let path = Path::new(named);
    if !named.ends_with(".toml") && !path.exists() {
        let known = builtins().iter().map(|builtin| builtin.name);
        return Err(EngineError::unknown("benchmark", named, known).into());
    }
    let benchmark = Benchmark::load(path)?;
    Ok((benchmark, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// Starts this program again with `CANDLE_NUM_THREADS=1` and [`MALLOC`], unless the former is set: the
/// first thing that a command does which runs a network in this process. Workers inherit both.
///
/// The threads of candle's own pool wait for work by spinning, at the cost of the threads that our
/// kernels work on: without it training on two cores is more than twice as fast. Neither can be said
/// in another way, and a running program cannot safely set a variable for itself. Where the program
/// cannot be started again it is slow, but goes on.
pub(crate) fn restart_for_networks() {
    use std::os::unix::process::CommandExt;
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    let (allocator, settings) = MALLOC;
    if std::env::var_os(CANDLE).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        let mut command = std::process::Command::new(program);
        command.args(std::env::args_os().skip(1)).env(CANDLE, "1");
        if std::env::var_os(allocator).is_none() {
            command.env(allocator, settings);
        }
        let _ = command.exec();
    }
}

/// Tells glibc's allocator to keep what is freed; others do not read it. It gives the pages of every
/// activation back to the system, which clears them for the next: 14 of 33 CPU seconds of a
/// DenseNet's forward passes went there, and half a second of 20 with these settings.
const MALLOC: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184");

/// How many threads there are.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Starts the threads that this process computes with.
pub(crate) fn start_threads(n: usize) -> Result<(), Failure> {
    // With tens of thousands a system is busy for minutes before anything is said.
    const MOST: usize = 1024;
    if !(1..=MOST).contains(&n) {
        let message = format!("`--threads` expected from 1 to {MOST}, got {n}");
        return Err(Failure::usage(message, None));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global()
        .map_err(|error| anyhow::Error::from(error).context("start threads").into())
}

/// Most of the machine's memory, in bytes, where the system tells.
pub(crate) fn most_of_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024 / 10 * 9)
}

/// Whether stdout takes colours.
pub(crate) fn styled() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal, or what suits a file.
pub(crate) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    columns.unwrap_or_else(|| {
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        size.map_or(120, |size| usize::from(size.ws_col).max(40))
    })
}
