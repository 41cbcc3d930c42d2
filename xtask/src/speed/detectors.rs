//! `cargo xtask speed detectors`: our detectors and the reference's on the same features, in turn.
//!
//! Our side, `plugins/posthoc/examples/speed.rs`, makes a synthetic feature set and leaves it in a
//! file for the other, `xtask/python/speed_detectors.py`: OpenOOD's own postprocessors where a
//! checkout is given, formulas in numpy, scipy and faiss otherwise.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{Side, can_import, median, most};
use crate::command::{Step, say};
use crate::workspace::Workspace;

/// What to measure, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The Python of the reference.
    pub(crate) python: OsString,
    /// A checkout of OpenOOD.
    pub(crate) openood: Option<PathBuf>,
    /// Threads of each side; all cores where none are given.
    pub(crate) threads: Option<usize>,
    /// How often each detector is timed.
    pub(crate) repeats: usize,
    /// Images to train on and to score.
    pub(crate) n_train: usize,
    pub(crate) n_test: usize,
    pub(crate) n_features: usize,
    pub(crate) n_classes: usize,
    /// Detectors; all where none are given.
    pub(crate) methods: Vec<String>,
    /// Seconds after which the reference scores no further images.
    pub(crate) budget: usize,
    pub(crate) clock: Clock,
}

/// What seconds are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Wall,
    /// The time that a side's threads have worked, to which other programs do not add.
    Processor,
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Processor => "processor",
        }
    }
}

/// Validation images for ten of training, as CIFAR-10 has them in OpenOOD's benchmark.
const TRAIN_PER_VAL: usize = 10;

/// Builds our side, finds the other, measures, and prints the table.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<u8> {
    match build_step(workspace).show_and_run()? {
        0 => {}
        code => return Ok(code),
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = options.threads.unwrap_or(cores);
    let folder = workspace.target.join("speed");
    std::fs::create_dir_all(&folder).with_context(|| format!("create `{}`", folder.display()))?;
    let mut ours = Side::start(our_command(workspace, options, &folder, threads), folder.clone())?;
    let known = ours.answer()?;
    let ids = chosen(&known.split('\t').collect::<Vec<&str>>(), &options.methods)?;
    let mut theirs = reference(workspace, options, &folder, threads)?;
    println!("{}", heading(options, threads, theirs.is_some()));
    let mut rows = Vec::new();
    for id in ids {
        let row = Row::measure(&id, &mut ours, theirs.as_mut(), &folder, options)?;
        println!("{}", row.line());
        rows.push(row);
    }
    println!("{}", totals(&rows));
    Ok(0)
}

/// Builds our side, which needs no network and no candle.
fn build_step(workspace: &Workspace) -> Step {
    Step::new(&workspace.cargo)
        .args(["build", "--release", "--locked", "--package", "oodbench-posthoc"])
        .args(["--example", "speed", "--target-dir"])
        .arg(&workspace.target)
        .folder(&workspace.root)
}

fn our_command(workspace: &Workspace, options: &Options, folder: &Path, threads: usize) -> Command {
    let Options { n_train, n_test, n_features, n_classes, .. } = *options;
    let name = format!("speed{}", std::env::consts::EXE_SUFFIX);
    let mut command = Command::new(workspace.target.join("release/examples").join(name));
    let n_val = (n_train / TRAIN_PER_VAL).max(1);
    let sizes = [n_train, n_val, n_test, n_features, n_classes];
    command.arg(folder).arg(options.clock.name()).args(sizes.map(|size| size.to_string()));
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command
}

/// Starts the other side, unless it lacks what it is made of.
fn reference(
    workspace: &Workspace,
    options: &Options,
    folder: &Path,
    threads: usize,
) -> anyhow::Result<Option<Side>> {
    let modules = match options.openood {
        Some(_) => "numpy, scipy, faiss, torch, yaml, tqdm, sklearn",
        None => "numpy, scipy, faiss",
    };
    if !can_import(&options.python, modules) {
        say(&format!(
            "warning: `{}` cannot import {modules}, so ours is measured alone\n\nhint: name one that can with `--python`",
            options.python.display()
        ));
        return Ok(None);
    }
    let mut command = Command::new(&options.python);
    command.arg(workspace.root.join("xtask/python/speed_detectors.py"));
    command.arg(folder.join("set.safetensors")).arg("--threads").arg(threads.to_string());
    command.arg("--budget").arg(options.budget.to_string());
    command.arg("--clock").arg(options.clock.name());
    if let Some(openood) = &options.openood {
        command.arg("--openood").arg(openood);
    }
    for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    let mut side = Side::start(command, folder.join("reference"))?;
    match side.answer()?.as_str() {
        "ready" => Ok(Some(side)),
        answer => bail!("the reference expected to be ready, got `{answer}`"),
    }
}

/// The detectors that are asked for, in our order.
fn chosen(known: &[&str], asked: &[String]) -> anyhow::Result<Vec<String>> {
    if let Some(unknown) = asked.iter().find(|id| !known.contains(&id.as_str())) {
        bail!("no detector `{unknown}` runs on features\n\nhint: there are {}", known.join(", "));
    }
    let is_asked = |id: &&&str| asked.is_empty() || asked.iter().any(|asked| asked == *id);
    Ok(known.iter().filter(is_asked).map(|id| (*id).to_owned()).collect())
}

fn heading(options: &Options, threads: usize, has_reference: bool) -> String {
    let Options { n_train, n_test, n_features, n_classes, repeats, .. } = *options;
    let reference = match (&options.openood, has_reference) {
        (_, false) => "there is no reference".to_owned(),
        (Some(folder), true) => format!("the reference is OpenOOD in `{}`", folder.display()),
        (None, true) => "the reference is formulas in numpy, scipy and faiss".to_owned(),
    };
    let sizes = format!("{n_train} x {n_features} to train on, {n_test} to score");
    let columns = format!(
        "{:<14}{:>9}{:>9}{:>7}{:>10}{:>10}{:>7}{:>8}{:>11}",
        "", "fit s", "score s", "MiB", "fit s", "score s", "MiB", "ratio", "difference"
    );
    format!(
        "{sizes}, {n_classes} classes; median of {repeats}, {} time, threads {threads}; {reference}\n{:<14}{:>25}{:>27}\n{columns}",
        options.clock.name(),
        "",
        "ours",
        "reference"
    )
}

/// What one side took.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    fit_s: f64,
    score_s: f64,
    bytes: u64,
    /// Images that were scored; the time is for all.
    n_scored: usize,
}

impl Cost {
    /// Reads an answer: seconds, seconds, bytes, and how many images, which is all where nothing is
    /// said; or the reason for which there are none.
    fn parse(answer: &str, n: usize) -> anyhow::Result<Result<Self, String>> {
        let words: Vec<&str> = answer.split('\t').collect();
        let cost = match words[..] {
            ["-", reason] => return Ok(Err(reason.to_owned())),
            [fit, score, bytes] => (fit, score, bytes, n),
            [fit, score, bytes, scored] => (fit, score, bytes, scored.parse()?),
            _ => bail!("expected seconds, seconds and bytes, got `{answer}`"),
        };
        let (fit, score, bytes, n_scored) = cost;
        let (fit_s, score_s) = (fit.parse()?, score.parse()?);
        Ok(Ok(Self { fit_s, score_s, bytes: bytes.parse()?, n_scored }))
    }

    fn total(&self) -> f64 {
        self.fit_s + self.score_s
    }

    /// The medians of the times, the greatest memory.
    fn of_rounds(rounds: &[Self]) -> Option<Self> {
        let of = |time: fn(&Self) -> f64| median(rounds.iter().map(time).collect());
        let n_scored = rounds.iter().map(|cost| cost.n_scored).min()?;
        let bytes = rounds.iter().map(|cost| cost.bytes).max()?;
        Some(Self { fit_s: of(|c| c.fit_s), score_s: of(|c| c.score_s), bytes, n_scored })
    }
}

/// A line of the table.
struct Row {
    id: String,
    n_test: usize,
    ours: Result<Cost, String>,
    /// None without a reference.
    theirs: Option<Result<Cost, String>>,
    /// The largest difference of scores in standard deviations of the reference's.
    off: Option<f64>,
}

impl Row {
    fn measure(
        id: &str,
        ours: &mut Side,
        mut theirs: Option<&mut Side>,
        folder: &Path,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let n = options.n_test;
        let files = [folder.join("ours.scores"), folder.join("reference.scores")];
        let ask = |side: &mut Side, file: &Path| -> anyhow::Result<Result<Cost, String>> {
            Cost::parse(&side.ask(&format!("{id}\t{n}\t{}", file.display()))?, n)
        };
        let (mut of_ours, mut of_theirs) = (Vec::new(), Vec::new());
        let mut row = Self {
            id: id.to_owned(),
            n_test: n,
            ours: Err(String::new()),
            theirs: None,
            off: None,
        };
        for _ in 0..options.repeats {
            match ask(ours, &files[0])? {
                Ok(cost) => of_ours.push(cost),
                Err(reason) => {
                    row.ours = Err(reason);
                    return Ok(row);
                }
            }
            // What it does not have it will not have in the next round.
            if let Some(side) = theirs.as_mut().filter(|_| row.theirs.is_none()) {
                match ask(side, &files[1])? {
                    Ok(cost) => of_theirs.push(cost),
                    Err(reason) => row.theirs = Some(Err(reason)),
                }
            }
        }
        row.ours = Cost::of_rounds(&of_ours).ok_or_else(String::new);
        if let Some(cost) = Cost::of_rounds(&of_theirs) {
            row.off = Some(difference(&read(&files[0])?, &read(&files[1])?));
            row.theirs = Some(Ok(cost));
        }
        Ok(row)
    }

    /// Both costs, where there are both.
    fn both(&self) -> Option<(Cost, Cost)> {
        match (&self.ours, &self.theirs) {
            (Ok(ours), Some(Ok(theirs))) => Some((*ours, *theirs)),
            _ => None,
        }
    }

    fn line(&self) -> String {
        let mib = |cost: Cost| cost.bytes >> 20;
        let mut line = format!("{:<14}", self.id);
        let add = "writing to a string";
        match &self.ours {
            Ok(cost) => write!(line, "{:>9.3}{:>9.3}{:>7}", cost.fit_s, cost.score_s, mib(*cost)),
            Err(reason) => return format!("{line}  {reason}"),
        }
        .expect(add);
        match &self.theirs {
            Some(Ok(cost)) => {
                let mark = if cost.n_scored < self.n_test { "*" } else { " " };
                let Cost { fit_s, score_s, .. } = *cost;
                write!(line, "{fit_s:>10.3}{score_s:>9.3}{mark}{:>7}", mib(*cost)).expect(add);
            }
            Some(Err(reason)) => write!(line, "  {reason}").expect(add),
            None => {}
        }
        if let (Some((ours, theirs)), Some(off)) = (self.both(), self.off) {
            write!(line, "{:>8.3}{off:>11.1e}", ours.total() / theirs.total()).expect(add);
        }
        line
    }
}

/// The sums over what both sides have, and over what is ours alone.
fn totals(rows: &[Row]) -> String {
    let both: Vec<(Cost, Cost)> = rows.iter().filter_map(Row::both).collect();
    let alone = rows.iter().filter(|row| row.both().is_none());
    let alone: Vec<f64> = alone.filter_map(|row| Some(row.ours.as_ref().ok()?.total())).collect();
    let ours: f64 = both.iter().map(|(ours, _)| ours.total()).sum();
    let theirs: f64 = both.iter().map(|(_, theirs)| theirs.total()).sum();
    let slower = rows.iter().filter(|row| row.both().is_some_and(|(a, b)| a.total() > b.total()));
    let slower: Vec<&str> = slower.map(|row| row.id.as_str()).collect();
    let mut text = String::new();
    if !both.is_empty() {
        text = format!(
            "all {} together: {ours:.1} s against {theirs:.1} s, a ratio of {:.3}; slower than the reference: {}",
            both.len(),
            ours / theirs,
            if slower.is_empty() { "none".to_owned() } else { slower.join(", ") }
        );
        if rows.iter().any(|row| row.both().is_some_and(|(_, b)| b.n_scored < row.n_test)) {
            text += "\n* scaled up from as many images as the time allowed";
        }
        text.push('\n');
    }
    let seconds = alone.iter().fold(0.0, |sum, seconds| sum + seconds);
    text + &format!("{} of ours without a reference: {seconds:.1} s", alone.len())
}

fn read(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
    Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// The largest difference over the images that both have scored, in standard deviations of the
/// reference's scores.
fn difference(ours: &[f32], theirs: &[f32]) -> f64 {
    let n = theirs.len() as f64;
    let mean = theirs.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = theirs.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let pairs = ours.iter().zip(theirs);
    let differences = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    differences.fold(0.0, most) / variance.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(fit_s: f64, score_s: f64, n_scored: usize) -> Cost {
        Cost { fit_s, score_s, bytes: 3 << 20, n_scored }
    }

    fn row(ours: Cost, theirs: Option<Result<Cost, String>>, off: Option<f64>) -> Row {
        Row { id: "knn".to_owned(), n_test: 100, ours: Ok(ours), theirs, off }
    }

    #[test]
    fn an_answer_has_times_or_a_reason() {
        let parse = |answer| Cost::parse(answer, 100).unwrap();
        assert_eq!(parse("0.5\t2\t3145728"), Ok(cost(0.5, 2.0, 100)));
        assert_eq!(parse("0.5\t2\t3145728\t7"), Ok(cost(0.5, 2.0, 7)));
        assert_eq!(parse("-\tno formula here"), Err("no formula here".to_owned()));
        assert!(Cost::parse("ready", 100).is_err());
    }

    #[test]
    fn a_line_has_a_ratio_where_there_are_two() {
        let both = row(cost(0.5, 1.5, 100), Some(Ok(cost(1.0, 7.0, 50))), Some(2e-5));
        let expected =
            "knn               0.500    1.500      3     1.000    7.000*      3   0.250     2.0e-5";
        assert_eq!(both.line(), expected);
        let alone = row(cost(0.5, 1.5, 100), Some(Err("no formula here".to_owned())), None);
        assert_eq!(alone.line(), "knn               0.500    1.500      3  no formula here");
        let total = totals(&[both, alone]);
        let expected = "all 1 together: 2.0 s against 8.0 s, a ratio of 0.250; slower than the reference: none\n* scaled up from as many images as the time allowed\n1 of ours without a reference: 2.0 s";
        assert_eq!(total, expected);
    }

    #[test]
    fn rounds_have_median_times_and_the_greatest_memory() {
        let mut rounds = [cost(3.0, 1.0, 9), cost(1.0, 2.0, 8), cost(2.0, 3.0, 9)];
        rounds[1].bytes = 9 << 20;
        let expected = Cost { fit_s: 2.0, score_s: 2.0, bytes: 9 << 20, n_scored: 8 };
        assert_eq!(Cost::of_rounds(&rounds), Some(expected));
        assert_eq!(Cost::of_rounds(&[]), None);
    }

    #[test]
    fn only_scores_that_both_have_are_compared() {
        assert_eq!(difference(&[1.0, 3.5, 9.0], &[1.0, 3.0]), 0.5);
        assert!(difference(&[f32::NAN, 3.0], &[1.0, 3.0]).is_nan());
    }

    #[test]
    fn detectors_come_in_our_order() {
        let known = ["msp", "knn", "vim"];
        let asked = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<String>>();
        assert_eq!(chosen(&known, &asked(&["vim", "msp"])).unwrap(), ["msp", "vim"]);
        assert_eq!(chosen(&known, &[]).unwrap(), known);
        assert!(chosen(&known, &asked(&["nkk"])).unwrap_err().to_string().contains("`nkk`"));
    }
}
