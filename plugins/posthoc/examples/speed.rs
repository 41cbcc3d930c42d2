//! Our side of `cargo xtask speed detectors`: fits and scores detectors on a synthetic feature set.
//!
//! Makes the set, writes it to `set.safetensors` in a folder for the other side, which is
//! `xtask/python/speed_detectors.py`, and prints a line of the detectors that it can run, with tabs
//! between them. Then a line on standard input is a detector, the number of test images, and a file
//! for their scores as raw `f32`; the answer is the seconds that fitting and scoring took and the
//! bytes that memory grew by at most, or `-` and a reason.

#[path = "../benches/support.rs"]
mod support;

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oodbench_sdk::Needs;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{Set, Sizes, Split};

/// What a detector may need and still be run here.
const OFFERED: Needs = Needs::LOGITS
    .and(Needs::FEATURES)
    .and(Needs::LABELS)
    .and(Needs::HEAD)
    .and(Needs::TRAIN)
    .and(Needs::VAL)
    .and(Needs::VAL_OOD);

/// Images of a batch, as many as the bench gives to detectors that read no pixels.
const BATCH: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, clock, numbers @ ..] = &args[..] else {
        return Err("expected a folder, a clock and sizes".into());
    };
    let clock = match clock.as_str() {
        "wall" => Clock::Wall(Instant::now()),
        "processor" => Clock::Processor,
        other => return Err(format!("clock expected wall or processor, got `{other}`").into()),
    };
    let numbers: Vec<usize> =
        numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let [n_train, n_val, n_test, n_features, n_classes] = numbers[..] else {
        return Err(
            "expected images to train on, to validate and to test, features and classes".into()
        );
    };
    let sizes = Sizes { n_train, n_val, n_test, n_features, n_classes };
    let set = Arc::new(Set::new(sizes, 0));
    write(&set, &Path::new(folder).join("set.safetensors"))?;
    let runnable: Vec<(&str, Needs)> = oodbench_posthoc::infos()
        .iter()
        .filter(|info| OFFERED.contains(info.needs))
        .map(|info| (info.id, info.needs))
        .collect();
    let ids: Vec<&str> = runnable.iter().map(|(id, _)| *id).collect();
    say(&ids.join("\t"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let [id, n, file] = line.split('\t').collect::<Vec<&str>>()[..] else {
            return Err(format!("expected a detector, a number and a file, got `{line}`").into());
        };
        let needs = runnable.iter().find(|(known, _)| *known == id).map(|(_, needs)| *needs);
        let needs = needs.ok_or_else(|| format!("there is no detector `{id}`"))?;
        match run(id, needs, &set, n.parse()?, clock) {
            Ok((times, scores)) => {
                let bytes: Vec<u8> = scores.iter().flat_map(|x| x.to_le_bytes()).collect();
                std::fs::write(file, bytes)?;
                say(&times)?;
            }
            Err(reason) => say(&format!("-\t{}", reason.replace(['\n', '\t'], " ")))?,
        }
    }
    Ok(())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

/// What seconds are counted by.
#[derive(Clone, Copy)]
enum Clock {
    Wall(Instant),
    /// The time that all threads have worked, which other programs do not add to.
    Processor,
}

impl Clock {
    /// Time since some moment.
    fn now(self) -> Result<Duration, String> {
        match self {
            Self::Wall(start) => Ok(start.elapsed()),
            Self::Processor => processor_time().ok_or("the processor time is unknown".to_owned()),
        }
    }
}

/// The first number of each thread's `schedstat`, on Linux, is the nanoseconds that it has worked.
fn processor_time() -> Option<Duration> {
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let statistics = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        sum += statistics.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(sum))
}

/// Fits and scores: the answer, and the scores.
fn run(
    id: &str,
    needs: Needs,
    set: &Arc<Set>,
    n: usize,
    clock: Clock,
) -> Result<(String, Vec<f32>), String> {
    let before = forget_peak();
    let start = clock.now()?;
    let mut detector = support::create(id, "{}", set)?;
    support::fit(&mut detector, needs, set).map_err(|error| error.message.to_string())?;
    let fitted = clock.now()?;
    let scores = support::score(&mut detector, needs, set, n, BATCH)
        .map_err(|error| error.message.to_string())?;
    let scored = clock.now()?;
    let (fit_s, score_s) = ((fitted - start).as_secs_f64(), (scored - fitted).as_secs_f64());
    let grown = memory("VmHWM:").saturating_sub(before);
    Ok((format!("{fit_s}\t{score_s}\t{grown}"), scores))
}

/// Makes the peak of memory what is used now, and says how much that is; 0 where that is unknown.
fn forget_peak() -> u64 {
    // Where it cannot be forgotten, the peak is that of all detectors so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    memory("VmRSS:")
}

fn memory(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(which));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn write(set: &Set, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut floats = |name: String, shape: Vec<usize>, values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((name, Dtype::F32, shape, bytes));
    };
    let (d, k) = (set.n_features, set.n_classes);
    floats("head.weight".to_owned(), vec![k, d], &set.weight);
    floats("head.bias".to_owned(), vec![k], &set.bias);
    let splits: [(&str, &Split); 4] =
        [("train", &set.train), ("val", &set.val), ("val_ood", &set.val_ood), ("test", &set.test)];
    for (name, split) in splits {
        floats(format!("{name}.features"), vec![split.len(), d], &split.features);
        floats(format!("{name}.logits"), vec![split.len(), k], &split.logits);
    }
    for (name, split) in splits {
        let bytes = split.labels.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((format!("{name}.labels"), Dtype::I64, vec![split.len()], bytes));
    }
    let mut views = Vec::new();
    for (name, dtype, shape, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?));
    }
    safetensors::serialize_to_file(views, None, path)?;
    Ok(())
}
