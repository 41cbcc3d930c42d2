//! What `sample` and `interpolate` have in common: the network, the sampler, the progress, and
//! pictures in files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Device;
use clap::Args;
use indicatif::HumanDuration;
use oodbench_datasets::{Progress, embedded};
use oodbench_diffusion::batch::{Batch, Evaluation};
use oodbench_diffusion::checkpoint::{Given, LoadError, LoadedModel, On, load};
use oodbench_diffusion::config::Config;
use oodbench_diffusion::denoise::MOST_AT_ONCE;
use oodbench_diffusion::picture::{Picture, PictureError};
use oodbench_diffusion::sampler::{Indexing, Method, Sampler, TOLERANCE};
use oodbench_engine::EngineError;
use oodbench_engine::text::chain;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::device::{AUTO, device};
use oodbench_nn::precision::Precision;
use rustix::fs::{Access, access};

use crate::device::chosen;
use crate::environment as env;
use crate::exit::{Failure, SETUP, UNFORESEEN, WRITE_FAILED};
use crate::observer::{ProgressMode, Talk};
use crate::train::configuration;

/// The network that is used when none is named.
const EMBEDDED: &str = "glyphs/diffusion.safetensors";

/// What to say of a configuration whose network has other tensors than the file.
pub(crate) const ANOTHER_NETWORK: &str =
    "the configuration describes another network than the file holds";

/// Time between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The diffusion network and how it is asked.
#[derive(Debug, Args)]
pub(crate) struct DiffusionArgs {
    /// The diffusion network: safetensors of ours, or the reference's .ckpt [default: that of the
    /// embedded benchmark].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// `Model` and `Schedule` of weights that do not describe themselves: TOML, JSON, or the
    /// reference's YAML.
    #[arg(long, value_name = "FILE", requires = "weights")]
    config: Option<PathBuf>,
    /// The sampler: DDIM, PNDM2, PNDM4, NDM1, NDM4 or PF.
    #[arg(long, value_name = "NAME", default_value = "PNDM4")]
    method: Method,
    /// Steps that the whole schedule is sampled with; PF chooses its own.
    #[arg(long, value_name = "N", default_value = "50", value_parser = positive)]
    steps: usize,
    /// Which state of the sampler an image is in: `reference` as the authors have it, one step too
    /// early, or `aligned`. NDM1, NDM4 and PF know but one.
    #[arg(long, value_name = "NAME", default_value = "reference", value_parser = indexing)]
    indexing: Indexing,
    /// The error that PF allows in a step, absolute and relative, from 0.0000001 to 1.
    #[arg(long, value_name = "NUMBER", default_value_t = TOLERANCE)]
    tolerance: f64,
    /// Images in one evaluation of the network, both branches of a guidance counted; or auto: on a
    /// GPU the largest power of two that fits and is of use.
    #[arg(long, value_name = "N|auto", default_value = "64")]
    pub(crate) batch_size: Batch,
    /// Where to compute: cpu, cuda, cuda:N, or auto, the first GPU if one answers and the CPU
    /// otherwise [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// What the network computes in: f32, or on a GPU tf32 or bf16. Other networks of the command
    /// are in f32, in tf32 if this one is.
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    /// How many threads to use [default: all].
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&n: &usize| n > 0);
    number.ok_or_else(|| "expected a number from 1".to_owned())
}

/// Repeats, or images of a batch.
pub(crate) fn at_once(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MOST_AT_ONCE).contains(n));
    number.ok_or_else(|| format!("expected a number from 1 to {MOST_AT_ONCE}"))
}

pub(crate) fn indexing(text: &str) -> Result<Indexing, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected `reference` or `aligned`".to_owned())
}

/// A network that is ready to be asked.
pub(crate) struct Network<'a> {
    args: &'a DiffusionArgs,
    pub(crate) loaded: LoadedModel,
    pub(crate) device: Device,
}

impl DiffusionArgs {
    /// Sets up threads and the talk, and chooses the device.
    pub(crate) fn begin(&self) -> Result<Steps, Failure> {
        let steps = self.start()?;
        self.choose_device(&steps)?;
        Ok(steps)
    }

    /// Sets up threads and the talk: all of it where nothing may have to be computed by a network.
    pub(crate) fn start(&self) -> Result<Steps, Failure> {
        // Smaller errors are lost in the rounding of the network: steps would shrink for hours.
        if !(1e-7..=1.0).contains(&self.tolerance) {
            let message =
                format!("`--tolerance` expected from 0.0000001 to 1, got {}", self.tolerance);
            return Err(Failure::usage(message, None));
        }
        env::restart_for_networks();
        env::start_threads(self.threads.unwrap_or_else(env::threads))?;
        Ok(Steps::new(self.progress))
    }

    /// Says which device it is to be, and whether it has the precision.
    pub(crate) fn choose_device(&self, steps: &Steps) -> Result<(), Failure> {
        let chosen = chosen(self.device.as_deref(), &steps.talk)?;
        crate::device::check(self.precision, &device(&chosen.name).map_err(EngineError::from)?)
    }

    /// Whether a device was named.
    pub(crate) fn names_device(&self) -> bool {
        self.device.is_some()
    }

    /// The device that [`DiffusionArgs::choose_device`] has said.
    pub(crate) fn device(&self) -> Result<Device, Failure> {
        Ok(device(self.device.as_deref().unwrap_or(AUTO)).map_err(EngineError::from)?)
    }

    /// Reads the network and checks the sampler against its schedule.
    pub(crate) fn load(&self, steps: &Steps) -> Result<Network<'_>, Failure> {
        let device = self.device()?;
        let given = match &self.config {
            Some(path) => Given::from(&Config::read(path).map_err(configuration)?),
            None => Given::default(),
        };
        let file = match &self.weights {
            Some(path) => StateDict::open(path),
            None => {
                let bytes = embedded(EMBEDDED).ok_or_else(|| {
                    anyhow::anyhow!("the program was built without its network `{EMBEDDED}`")
                })?;
                StateDict::from_bytes(bytes, Path::new(EMBEDDED))
            }
        };
        let file = file.map_err(|error| setup(&error))?;
        let on = On { device: &device, precision: self.precision, replay: true };
        let loaded = load(&file, &given, on).map_err(|error| {
            let mut failure = setup(&error);
            if self.config.is_some() && matches!(error, LoadError::Network { .. }) {
                failure.hint = Some(ANOTHER_NETWORK.to_owned());
            }
            failure
        })?;
        if let Some((key, got)) = loaded.net.not_of_colour() {
            let path = file.path().display();
            return Err(Failure {
                message: format!(
                    "load diffusion network `{path}`: `Model.{key}` expected 3, the channels of an \
                     image, got {got}"
                ),
                hint: None,
                code: SETUP,
            });
        }
        let of_schedule = loaded.schedule.steps();
        if self.steps > of_schedule {
            let message = format!(
                "`--steps` expected at most {of_schedule}, those of the schedule, got {}",
                self.steps
            );
            return Err(Failure::usage(message, None));
        }
        if self.method.wants_linear_schedule() && !loaded.schedule.is_linear() {
            steps.talk.line(&format!(
                "warning: {} is written for a linear schedule; of this one it heeds the first and \
                 the last beta alone, as the reference does",
                self.method
            ));
        }
        Ok(Network { args: self, loaded, device })
    }
}

impl Network<'_> {
    /// How many images the network takes at once, of at most so many, with guidance of this weight.
    pub(crate) fn batch(&self, beta: f64, most: usize, talk: &Talk) -> Result<usize, Failure> {
        if let Batch::Of(batch) = self.args.batch_size {
            return Ok(batch);
        }
        let evaluation = self.evaluation(beta);
        let most = most.saturating_mul(evaluation.branches()).min(MOST_AT_ONCE);
        let found = evaluation.largest(most).map_err(|error| setup(&error))?;
        talk.note(&found.line());
        Ok(found.batch)
    }

    /// One evaluation of the network, with guidance of this weight.
    pub(crate) fn evaluation(&self, beta: f64) -> Evaluation<'_> {
        let (model, side) = (self.loaded.model.as_ref(), self.loaded.net.image_size());
        Evaluation { model, beta, size: (side, side), device: &self.device }
    }

    pub(crate) fn sampler(&self) -> Sampler<'_> {
        let args = self.args;
        Sampler {
            indexing: args.indexing,
            tolerance: args.tolerance,
            ..Sampler::new(&self.loaded.schedule, args.method, args.steps)
        }
    }
}

/// Says so where a network was not replayed as CUDA graphs, once it has been used.
pub(crate) fn say_refused(loaded: &LoadedModel, talk: &Talk) {
    if let Some(warning) = loaded.refused.warning() {
        talk.line(&format!("warning: {warning}"));
    }
}

/// What is missing or broken.
fn setup(error: &dyn std::error::Error) -> Failure {
    Failure { message: chain(error), hint: None, code: SETUP }
}

/// How far the evaluations of a network are: a bar on a terminal, a line now and then elsewhere.
pub(crate) struct Steps {
    pub(crate) talk: Talk,
    mode: ProgressMode,
    work: Option<Work>,
}

struct Work {
    what: &'static str,
    total: usize,
    done: usize,
    start: Instant,
    last_line: Instant,
}

impl Steps {
    fn new(mode: ProgressMode) -> Self {
        Self { talk: Talk::new(mode, false), mode, work: None }
    }

    /// Work of `total` evaluations begins.
    pub(crate) fn begin(&mut self, what: &'static str, total: usize) {
        // Elsewhere than on a terminal the talk would call them images.
        if self.talk.has_bar() {
            self.talk.begin(what, total as u64);
        }
        let start = Instant::now();
        self.work = Some(Work { what, total, done: 0, start, last_line: start });
    }

    /// One evaluation more is about to be done.
    pub(crate) fn tick(&mut self) {
        let Some(work) = &mut self.work else { return };
        if work.last_line.elapsed() >= LINE_EVERY && work.done > 0 {
            work.last_line = Instant::now();
            if !self.talk.has_bar() && self.mode != ProgressMode::None {
                let each = work.start.elapsed().as_secs_f64() / work.done as f64;
                let left = each * work.total.saturating_sub(work.done) as f64;
                let (what, done, total) = (work.what, work.done, work.total);
                let left = HumanDuration(Duration::from_secs_f64(left));
                // How many an adaptive method takes is a guess.
                self.talk.line(&match done < total {
                    true => format!("{what}: {done} of {total} evaluations, {left} left"),
                    false => format!("{what}: {done} evaluations"),
                });
            }
        }
        work.done += 1;
        self.talk.advance(1);
    }

    /// The work is over; seconds that it took.
    pub(crate) fn end(&mut self) -> f64 {
        self.talk.end();
        self.work.take().map_or(0.0, |work| work.start.elapsed().as_secs_f64())
    }
}

/// Refuses a place that no file can be written to, before anything is computed for it.
pub(crate) fn check_place(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        let message = format!("write `{}`: expected a file, got a folder", path.display());
        return Err(Failure::usage(message, None));
    }
    check_folder(path.parent().unwrap_or(Path::new("")))
}

/// As [`check_place`], for a folder that files are written to. It is not made yet: what is typed
/// wrongly elsewhere leaves nothing behind.
pub(crate) fn check_folder(folder: &Path) -> Result<(), Failure> {
    let mut there = folder.ancestors().filter(|folder| folder.exists());
    let there = there.next().unwrap_or(Path::new("."));
    let problem = match access(there, Access::WRITE_OK | Access::EXEC_OK) {
        _ if !there.is_dir() => "expected a folder, got a file".to_owned(),
        Ok(()) => return Ok(()),
        Err(error) => error.to_string(),
    };
    let message = format!("write to folder `{}`: {problem}", there.display());
    Err(Failure { message, hint: None, code: WRITE_FAILED })
}

/// Writes a picture, under its name only when it is whole.
pub(crate) fn write(picture: &Picture, path: &Path) -> Result<(), Failure> {
    let png = picture.png().map_err(|error| no_picture(&error))?;
    oodbench_record::write_atomically(path, &png).map_err(|error| Failure {
        message: chain(&error),
        hint: None,
        code: WRITE_FAILED,
    })
}

pub(crate) fn no_picture(error: &PictureError) -> Failure {
    Failure { message: chain(error), hint: None, code: UNFORESEEN }
}
