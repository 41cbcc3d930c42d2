//! Our side of `cargo xtask speed` and of the benches on a GPU: the CIFAR-10 network of DDIM on
//! formula weights, one task a line on standard input, the seconds that it took on standard output.
//!
//! The other side is `xtask/python/speed.py` on the CPU and `xtask/python/gpu_speed.py` on a GPU, which
//! do the same tasks in PyTorch. A task's results go to files of raw `f32`, so that both can be compared.
//!
//! A line is a task, the number of images, and a path whose ending is replaced by the number of
//! each result, with tabs between them; then, if need be, how often the task is done before it is
//! timed, and how often it is timed: the answer is the median. Before every reading of the clock
//! the device has ended its work.
//!
//! | task | what |
//! | --- | --- |
//! | `forward` | one evaluation of the U-Net |
//! | `backward` | the same, and the gradients of a loss |
//! | `step` | a training step with dropout, clipping, AdamW and the moving average |
//! | `diffood` | DiffOOD's score of images, by the detector's own code |
//! | `classify` | logits and features of ResNet-18 |
//! | `graphs` | no time: whether evaluations are replayed as CUDA graphs, `on`, `off` or the reason |
//! | `floors` | no time: operations and bytes of a forward pass, and the number of parameters |
//!
//! A task that fails is answered by `error: ` and the reason; the next one is awaited.

mod bench;
mod floors;
mod options;

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use bench::Bench;
use options::Options;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell where standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::new(Options::from_args(std::env::args().skip(1))?)?;
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&mut bench, &line?);
        let answer = answer.unwrap_or_else(|error| {
            let reason = error.to_string();
            format!("error: {}", reason.lines().next().unwrap_or_default())
        });
        writeln!(std::io::stdout(), "{answer}")?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn answer(bench: &mut Bench, line: &str) -> Result<String, Box<dyn Error>> {
    let words: Vec<&str> = line.split('\t').collect();
    let (task, n, file, counts) = match words[..] {
        [task, n, file] => (task, n.parse()?, Path::new(file), (0, 1)),
        [task, n, file, warm, timed] => {
            (task, n.parse()?, Path::new(file), (warm.parse()?, timed.parse()?))
        }
        _ => return Err(format!("expected a task, a number and a path, got `{line}`").into()),
    };
    if task == "floors" {
        let floors = bench.floors(n)?;
        return Ok(format!("{} {} {}", floors.operations, floors.bytes, floors.parameters));
    }
    if task == "graphs" {
        return Ok(bench.graphs());
    }
    let (warm, timed): (usize, usize) = counts;
    let (mut seconds, mut results) = (Vec::new(), Vec::new());
    for round in 0..warm + timed {
        let (took, found) = bench.run(task, n)?;
        if round >= warm {
            seconds.push(took);
        }
        results = found;
    }
    for (index, result) in results.iter().enumerate() {
        let bytes: Vec<u8> = result.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(file.with_extension(index.to_string()), bytes)?;
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).ok_or("expected at least one timed round")?;
    Ok(median.to_string())
}
