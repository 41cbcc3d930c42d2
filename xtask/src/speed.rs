//! `cargo xtask speed networks`: ours and PyTorch's on the same weights, in turn, on the CPU.
//! `speed detectors` is in a file of its own.
//!
//! Both sides are programs that read tasks from standard input: `harness/diffusion/examples/speed`
//! and `xtask/python/speed.py`. Each task alternates between them, so that whatever else the machine
//! does meets both; the table has medians. Where PyTorch cannot be imported, ours is measured alone.

#![expect(clippy::print_stdout, reason = "the table is this command's data")]

pub(crate) mod cli;
mod detectors;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use crate::command::{Step, say};
use crate::workspace::Workspace;

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Networks(Options),
    Detectors(detectors::Options),
}

/// Measures, and prints the table.
pub(crate) fn run(workspace: &Workspace, task: &Task) -> anyhow::Result<u8> {
    match task {
        Task::Networks(options) => networks(workspace, options),
        Task::Detectors(options) => detectors::run(workspace, options),
    }
}

/// What to measure, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The Python that has PyTorch.
    pub(crate) python: OsString,
    /// Threads of each side; all cores where none are given.
    pub(crate) threads: Option<usize>,
    /// How often each task is timed, after one round that is not counted.
    pub(crate) repeats: usize,
    /// Images of a batch.
    pub(crate) batch: usize,
}

/// The tasks, and what they are called in the table.
const TASKS: [(&str, &str); 4] = [
    ("forward", "U-Net forward"),
    ("backward", "forward and backward"),
    ("step", "training step"),
    ("diffood", "DiffOOD, images/s"),
];

/// The largest difference between the two sides, in standard deviations of a tensor.
const TOLERANCE: f64 = 1e-4;

/// Builds our side, finds the other, measures, and prints the table.
fn networks(workspace: &Workspace, options: &Options) -> anyhow::Result<u8> {
    match build_step(workspace).show_and_run()? {
        0 => {}
        code => return Ok(code),
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = options.threads.unwrap_or(cores);
    let folder = workspace.target.join("speed");
    std::fs::create_dir_all(&folder).with_context(|| format!("create `{}`", folder.display()))?;
    let mut sides = vec![Side::start(our_command(workspace, threads), folder.join("ours"))?];
    if can_import(&options.python, "torch") {
        let script = workspace.root.join("xtask/python/speed.py");
        let mut command = Command::new(&options.python);
        command.arg(script).arg("--threads").arg(threads.to_string());
        sides.push(Side::start(command, folder.join("torch"))?);
    } else {
        say(&format!(
            "warning: `{}` cannot import torch, so ours is measured alone\n\nhint: name one that can with `--python`",
            options.python.display()
        ));
    }
    println!("median of {}, threads {threads}, batch {}", options.repeats, options.batch);
    println!("{:<22}{:>10}{:>10}{:>8}{:>11}", "", "ours", "PyTorch", "ratio", "difference");
    let mut agree = true;
    for (task, title) in TASKS {
        let row = measure(&mut sides, task, options)?;
        println!("{}", row.line(title));
        // A NaN does not agree.
        agree &= row.off.is_none_or(|off| off <= TOLERANCE);
    }
    if !agree {
        say(&format!("error: the two sides expected to agree to {TOLERANCE:.0e}"));
        return Ok(1);
    }
    Ok(0)
}

/// Builds our side. Without the network, as nothing but candle is needed.
fn build_step(workspace: &Workspace) -> Step {
    Step::new(&workspace.cargo)
        .args(["build", "--release", "--locked", "--package", "oodbench-diffusion"])
        .args(["--example", "speed", "--target-dir"])
        .arg(&workspace.target)
        .folder(&workspace.root)
}

/// candle's own threads wait by spinning, at the cost of those that our kernels work on.
fn our_command(workspace: &Workspace, threads: usize) -> Command {
    let name = format!("speed{}", std::env::consts::EXE_SUFFIX);
    let mut command = Command::new(workspace.target.join("release/examples").join(name));
    command.env("RAYON_NUM_THREADS", threads.to_string()).env("CANDLE_NUM_THREADS", "1");
    command
}

fn can_import(python: &OsStr, modules: &str) -> bool {
    let mut command = Command::new(python);
    command.arg("-c").arg(format!("import {modules}")).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A running program that does tasks.
struct Side {
    child: Child,
    answers: BufReader<ChildStdout>,
    /// Its results begin with this.
    results: PathBuf,
}

impl Side {
    fn start(mut command: Command, results: PathBuf) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("start `{program}`"))?;
        let answers = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self { child, answers: BufReader::new(answers), results })
    }

    /// Does a task and gives the seconds that it took.
    fn time(&mut self, task: &str, n: usize) -> anyhow::Result<f64> {
        let answer = self.ask(&format!("{task}\t{n}\t{}", self.results.display()))?;
        match answer.parse() {
            Ok(seconds) => Ok(seconds),
            Err(_) => bail!("task `{task}` expected seconds, got `{answer}`"),
        }
    }

    /// What it says to a line.
    fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        let requests = self.child.stdin.as_mut().context("a pipe was asked for")?;
        writeln!(requests, "{line}")?;
        requests.flush()?;
        self.answer()
    }

    /// The next line that it says, which is nothing once it has ended.
    fn answer(&mut self) -> anyhow::Result<String> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }

    /// The tensors of its last result.
    fn result(&self) -> anyhow::Result<Vec<Vec<f32>>> {
        let text =
            |path: &Path| std::fs::read(path).with_context(|| format!("read `{}`", path.display()));
        let mut tensors = Vec::new();
        for index in 0.. {
            let path = self.results.with_extension(index.to_string());
            if !path.exists() {
                break;
            }
            let bytes = text(&path)?;
            tensors.push(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect());
            std::fs::remove_file(&path)?;
        }
        Ok(tensors)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It ends when its input does; there is nobody left to tell if it does not.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A line of the table.
struct Row {
    /// Seconds, or images a second: ours, then PyTorch's.
    medians: Vec<f64>,
    /// The largest difference in standard deviations, where there is something to compare.
    off: Option<f64>,
}

impl Row {
    fn line(&self, title: &str) -> String {
        let number = |value: Option<&f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
        let ratio = match self.medians[..] {
            [ours, theirs] => format!("{:.2}", ours / theirs),
            _ => "-".to_owned(),
        };
        let off = self.off.map_or("-".to_owned(), |off| format!("{off:.1e}"));
        let (ours, theirs) = (number(self.medians.first()), number(self.medians.get(1)));
        format!("{title:<22}{ours:>10}{theirs:>10}{ratio:>8}{off:>11}")
    }
}

fn measure(sides: &mut [Side], task: &str, options: &Options) -> anyhow::Result<Row> {
    let is_rate = task == "diffood";
    // Guidance evaluates each image twice.
    let n = if is_rate { options.batch.div_ceil(2) } else { options.batch };
    let mut times = vec![Vec::new(); sides.len()];
    let mut off = None;
    for round in 0..=options.repeats {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            let seconds = side.time(task, n)?;
            if round > 0 {
                times.push(seconds);
            }
        }
        let results = sides.iter().map(Side::result).collect::<anyhow::Result<Vec<_>>>()?;
        if let [ours, theirs] = &results[..] {
            off = largest_difference(ours, theirs)?;
        }
    }
    let value = |times: Vec<f64>| {
        let seconds = median(times);
        if is_rate { n as f64 / seconds } else { seconds }
    };
    Ok(Row { medians: times.into_iter().map(value).collect(), off })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Between tensors of one shape, in standard deviations of the second.
fn largest_difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> anyhow::Result<Option<f64>> {
    let lengths = |tensors: &[Vec<f32>]| tensors.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(ours) != lengths(theirs) {
        bail!("results expected the sizes {:?}, got {:?}", lengths(theirs), lengths(ours));
    }
    let off = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let n = b.len() as f64;
        let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = b.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let differences = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
        differences.fold(0.0, most) / variance.sqrt()
    };
    Ok(ours.iter().zip(theirs).map(off).reduce(most))
}

/// The larger of two, where a NaN is larger than anything.
fn most(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_in_standard_deviations() {
        let off = |a: &[f32], b: &[f32]| largest_difference(&[a.to_vec()], &[b.to_vec()]).unwrap();
        assert_eq!(off(&[1.0, 3.5], &[1.0, 3.0]), Some(0.5));
        assert!(off(&[f32::NAN, 3.0], &[1.0, 3.0]).unwrap().is_nan());
        let (good, bad) = (vec![1.0, 3.0], vec![f32::NAN, 3.0]);
        let two = largest_difference(&[bad, good.clone()], &[good.clone(), good]).unwrap();
        assert!(two.unwrap().is_nan());
        assert_eq!(largest_difference(&[], &[]).unwrap(), None);
        assert!(largest_difference(&[vec![0.0]], &[]).is_err());
    }

    #[test]
    fn a_line_has_a_ratio_where_there_are_two() {
        let both = Row { medians: vec![0.5, 1.0], off: Some(2e-5) };
        let expected = "U-Net forward              0.500     1.000    0.50     2.0e-5";
        assert_eq!(both.line("U-Net forward"), expected);
        let alone = Row { medians: vec![0.5], off: None };
        let expected = "U-Net forward              0.500         -       -          -";
        assert_eq!(alone.line("U-Net forward"), expected);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
