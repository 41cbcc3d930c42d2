//! The processes of a training on several GPUs.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use candle_core::Device;
use oodbench_diffusion::train::{DiffusionTraining, Share};
use oodbench_nn::train::{GroupId, Reduce, Together, TrainError};

use crate::exit::{CELLS_FAILED, DONE, Failure, SETUP, UNFORESEEN};
use crate::train::stop::Stop;

/// How long this process has to end by itself after another one has: what went wrong there most often
/// goes wrong here too, and is said here.
const GRACE: Duration = Duration::from_secs(10);

/// Rank 0, and its hold on the others.
pub(in crate::train::diffusion) struct Group {
    together: Together,
    watchers: Vec<JoinHandle<()>>,
    /// Closed when this is dropped, or the process dies: the others end then.
    lines: Vec<ChildStdin>,
    /// Whether the others may end.
    is_over: Arc<AtomicBool>,
}

impl Group {
    /// Starts a process for each device but the first, and meets them.
    pub(in crate::train::diffusion) fn start(
        names: &[&str],
        device: &Device,
    ) -> Result<Self, Failure> {
        let id = GroupId::new().map_err(TrainError::from)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut watchers, mut lines) = (Vec::new(), Vec::new());
        for (rank, name) in names.iter().enumerate().skip(1) {
            let (child, line) = member(rank, names.len(), &id)?;
            lines.push(line);
            let (name, is_over) = ((*name).to_owned(), is_over.clone());
            watchers.push(std::thread::spawn(move || watch(child, &name, &is_over)));
        }
        // Every process that waits here too was started by now.
        let together = Together::join(device, &id, 0, names.len()).map_err(unmet)?;
        Ok(Self { together, watchers, lines, is_over })
    }

    pub(in crate::train::diffusion) fn reduce(&mut self) -> &mut dyn Reduce {
        &mut self.together
    }

    pub(in crate::train::diffusion) fn any(&self, says: bool) -> Result<bool, Failure> {
        Ok(self.together.any(says).map_err(TrainError::from)?)
    }

    /// Waits for the others, who make as many steps.
    pub(in crate::train::diffusion) fn finish(mut self) -> Result<(), Failure> {
        self.is_over.store(true, Ordering::Release);
        for watcher in self.watchers.drain(..) {
            watcher.join().map_err(|_| anyhow!("wait for another process of the training"))?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whatever this process ends with, the others have nothing to say about it.
        self.is_over.store(true, Ordering::Release);
        self.lines.clear();
    }
}

/// Processes that do not come together. NCCL itself finds a GPU that was named twice.
fn unmet(error: candle_core::Error) -> Failure {
    Failure {
        message: error.to_string(),
        hint: Some("name each GPU once; with `NCCL_DEBUG=WARN` set NCCL says what it lacks".into()),
        code: SETUP,
    }
}

/// Starts the process of a rank, and tells it the id.
fn member(rank: usize, world: usize, id: &GroupId) -> Result<(Child, ChildStdin), Failure> {
    let start = || -> anyhow::Result<(Child, ChildStdin)> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .arg("--member")
            .arg(format!("{rank}/{world}"))
            .stdin(Stdio::piped())
            .spawn()?;
        let mut line = child.stdin.take().context("open its standard input")?;
        line.write_all(id.text().as_bytes())?;
        line.flush()?;
        Ok((child, line))
    };
    let what = || format!("start process {rank} of {world}");
    Ok(start().with_context(what)?)
}

/// Waits for a process, and ends this one if it was needed still.
fn watch(mut child: Child, name: &str, is_over: &AtomicBool) {
    let outcome = child.wait();
    if is_over.load(Ordering::Acquire) {
        return;
    }
    std::thread::sleep(GRACE);
    if is_over.load(Ordering::Acquire) {
        return;
    }
    let (how, code) = match outcome {
        Ok(status) => (status.to_string(), status.code().and_then(|code| u8::try_from(code).ok())),
        Err(error) => (error.to_string(), None),
    };
    let message = format!("train on `{name}`: its process ended before the training: {how}");
    let hint = Some("the last checkpoint is as it was; `--restart` goes on from it".to_owned());
    let code = code.filter(|code| *code != DONE).unwrap_or(UNFORESEEN);
    Failure { message, hint, code }.say();
    end(code);
}

/// Trains as another rank than the first, which says and saves everything.
pub(in crate::train::diffusion) fn follow(
    training: &mut DiffusionTraining<'_>,
    share: Share,
    device: &Device,
    end_step: u64,
) -> Result<u8, Failure> {
    let mut text = vec![0; GroupId::TEXT_BYTES];
    let mut line = std::io::stdin();
    line.read_exact(&mut text).context("read what the processes of a training share")?;
    let id = std::str::from_utf8(&text).ok().and_then(GroupId::parse);
    let id =
        id.ok_or_else(|| anyhow!("read what the processes of a training share: no such text"))?;
    std::thread::spawn(move || {
        // Returns when rank 0 has ended, however it did.
        let _ = line.read(&mut [0]);
        end(UNFORESEEN);
    });
    training.take_share(share)?;
    let joined = Together::join(device, &id, share.rank, share.world);
    let mut together = joined.map_err(unmet)?;
    let stop = Stop::listen()?;
    while training.step_count() < end_step
        && !together.any(stop.is_asked()).map_err(TrainError::from)?
    {
        match training.step(&mut together) {
            Ok(_) => {}
            // Every process finds the same, and rank 0 says it.
            Err(TrainError::NotFinite { .. }) => return Ok(CELLS_FAILED),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(DONE)
}

/// Ends the process: its other threads may wait in NCCL for somebody who will not come.
#[expect(clippy::exit, reason = "nothing else ends a call of NCCL that waits")]
fn end(code: u8) -> ! {
    std::process::exit(i32::from(code))
}
