//! DiffOOD: how much a diffusion model's denoising changes what the classifier sees.
//!
//! Liu et al., "Diffusion Denoising Process for Perceptron Bias in Out-of-distribution
//! Detection", 2022. An image `x` is diffused to timestep `t` and denoised by a diffusion model
//! of the in-distribution images, guided by the class that the classifier predicts for `x`. The
//! score is `mean over repeats of | n(h(x_s)) - n(h(x_t)) |_1`, where `x_t` is the image denoised
//! from timestep `t`, `h` the pixels, features or logits, `n(v) = v / (|v|_2 + 1e-10)`, and `s`
//! the first timestep (`global`) or the one before `t` (`local`).
//!
//! The reference (luping-liu/DiffOOD) never combines timesteps: its table has a column for each
//! change, and the one it calls `base` is the global change of the last timestep. That is the
//! default here; `change` names another. Only the two timesteps that a score needs are computed;
//! a parameter search over space, mode and change reads all of them off one pass.
//!
//! The reference draws its noise afresh in each run. Here it belongs to the image and the seed
//! ([`noise`]), so that a score depends on neither batch, nor shard, nor order.
//!
//! The process itself is [`oodbench_diffusion::denoise`]; here it gets parameters, and images,
//! noise and the classifier from the host.

mod params;

use candle_core::Device;
use oodbench_diffusion::batch::{Batch as BatchSize, Evaluation};
use oodbench_diffusion::checkpoint::{LoadedModel, On};
use oodbench_diffusion::denoise::{
    DenoiseError, Images, MOST_AT_ONCE, Outputs, Readout, Refusal, Scoring, network, noise,
    predicted,
};
use oodbench_nn::device::is_out_of_memory;
use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

pub use params::Params;
use params::{Origin, described};

/// What the detector computes on in this build.
pub fn built_for() -> String {
    oodbench_nn::device::built_for()
}

/// DiffOOD.
pub struct DiffOod {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
    /// What `auto` has come to. One batch for all images: scores differ by rounding between batches.
    batch: Option<usize>,
    /// Whether the user knows that steps are not replayed.
    said_refused: bool,
}

struct Fitted {
    loaded: LoadedModel,
    device: Device,
    /// The device's name.
    name: String,
    n_classes: usize,
    /// Of the images, in pixels.
    side: usize,
}

impl Detector for DiffOod {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "diffood",
            title: "DiffOOD",
            family: "generative",
            summary: "how much denoising by a diffusion model changes the classifier's output",
            paper: "Liu et al., Diffusion Denoising Process for Perceptron Bias in Out-of-distribution Detection",
            year: 2022,
            url: "https://arxiv.org/abs/2211.11255",
            needs: Needs::IMAGES.and(Needs::LOGITS).and(Needs::FORWARD).and(Needs::ASSETS),
            params: described(),
            example: example(),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        params.check()?;
        params.check_on(&host.device())?;
        Ok(Self { params, host, fitted: None, batch: None, said_refused: false })
    }

    /// Loads the diffusion network. Nothing is learned, and there is no state to save.
    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let origin = self.params.origin(&|name| self.host.asset(name))?;
        let name = self.host.device();
        let device = oodbench_nn::device::device(&name).map_err(|err| {
            let hint = err.hint().map(|hint| format!("\n\nhint: {hint}"));
            let message = format!("{}{}", in_one_line(&err), hint.unwrap_or_default());
            if is_out_of_memory(&err) { Error::out_of_memory(message) } else { Error::new(message) }
        })?;
        let (n_classes, size) = (data.n_classes(), self.host.image_size()?);
        let Params { precision, graphs, .. } = self.params;
        oodbench_nn::device::set_precision(precision, &device)
            .map_err(|err| Error::new(err.to_string()))?;
        let on = On { device: &device, precision, replay: graphs };
        let loaded = match &origin {
            Origin::Untrained => {
                network::check_square(size).and_then(|()| network::untrained(size.0, n_classes, on))
            }
            Origin::File { weights, config } => {
                network::load(weights, config.as_deref(), size, n_classes, on)
            }
        };
        let loaded = loaded.map_err(|err| Error::new(in_one_line(&err)))?;
        let trained_on = loaded.net.image_size();
        if size.0 != trained_on {
            self.host.warn(&format!(
                "the diffusion network was trained on images of {trained_on}x{trained_on} and is used on {}x{}: expect little of its scores",
                size.0, size.1
            ));
        }
        let steps = loaded.schedule.steps();
        for &timestep in &self.params.timesteps {
            if timestep >= steps {
                let expected = format!("steps below {steps}, the length of the schedule");
                return Err(Error::parameter("timesteps", &expected, timestep));
            }
        }
        if self.params.steps > steps {
            let expected = format!("at most {steps}, the length of the schedule");
            return Err(Error::parameter("steps", &expected, self.params.steps));
        }
        self.fitted = Some(Fitted { loaded, device, name, n_classes, side: size.0 });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        self.read_off(batch, &[self.params.readout()], scores)
    }

    /// Denoising is what costs time: every variant is read off the same denoised images.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let readouts: Vec<Readout> = variants.iter().map(Params::readout).collect();
        self.read_off(batch, &readouts, scores)
    }
}

impl DiffOod {
    /// The scores for each readout and image, from one pass.
    fn read_off(
        &mut self,
        batch: &Batch<'_>,
        readouts: &[Readout],
        scores: &mut [f32],
    ) -> Result<()> {
        let Some(fitted) = &self.fitted else {
            return Err(Error::new("`score` was called before `fit`"));
        };
        let images = batch.images()?;
        let at_once = match (self.batch, self.params.batch) {
            (Some(found), _) => found,
            (None, BatchSize::Of(batch)) => batch,
            (None, BatchSize::Auto) => self.found_batch(fitted, images.len())?,
        };
        self.batch = Some(at_once);
        let classes = fitted.classes(batch, images)?;
        let images = Images::new(images.values(), (fitted.side, fitted.side)).map_err(plain)?;
        let scoring = Scoring {
            denoiser: self.params.denoiser(&fitted.loaded, &fitted.device, at_once),
            timesteps: &self.params.timesteps,
            repeats: self.params.repeats,
        };
        let (host, seed, keys) = (&self.host, self.host.seed(), batch.keys());
        let total = scoring.evaluations(images.len(), readouts).map_err(plain)?;
        let mut done = 0;
        let mut tick = || -> std::result::Result<(), Refusal> {
            host.progress(done.min(total), total)?;
            done += 1;
            Ok(())
        };
        let noise = |image: usize, repeat, len| noise::noise(seed, keys[image], repeat, len);
        let classify = |images: Images<'_>| -> std::result::Result<Outputs, Refusal> {
            let (height, width) = images.size();
            let forward = host.forward(ImageBatch::new(images.values(), height, width)?)?;
            let features = forward.features().values().to_vec();
            Ok(Outputs { features, logits: forward.logits().values().to_vec() })
        };
        let found = scoring.scores(images, &classes, &noise, readouts, &classify, &mut tick);
        if let Some(warning) = fitted.loaded.refused.warning()
            && !self.said_refused
        {
            host.warn(&warning);
            self.said_refused = true;
        }
        scores.copy_from_slice(&found.map_err(|err| fitted.failure(err))?);
        host.progress(total, total)
    }

    /// The batch for `auto`, found on the device where the images are scored. The host hands over so
    /// many of them; there is no use in more at once.
    fn found_batch(&self, fitted: &Fitted, n_images: usize) -> Result<usize> {
        let evaluation = Evaluation {
            model: fitted.loaded.model.as_ref(),
            beta: self.params.beta,
            size: (fitted.side, fitted.side),
            device: &fitted.device,
        };
        let rows = n_images.saturating_mul(self.params.repeats);
        let most = rows.saturating_mul(evaluation.branches()).min(MOST_AT_ONCE);
        let found = evaluation.largest(most).map_err(|err| Error::new(in_one_line(&err)))?;
        self.host.info(&format!("{} on {}", found.line(), fitted.name));
        Ok(found.batch)
    }
}

impl Fitted {
    /// An error in the host's words.
    fn failure(&self, err: DenoiseError) -> Error {
        let DenoiseError::OutOfMemory { fits, .. } = &err else { return plain(err) };
        let hint = match fits {
            Some(fits) => format!("`--set diffood.batch={fits}`, or `diffood.batch=auto`"),
            None => "`nvidia-smi` shows what else takes memory".to_owned(),
        };
        Error::out_of_memory(format!("{err} ({})\n\nhint: {hint}", self.name))
    }

    /// The class of each image that guides the process, of a batch that is as it should be.
    fn classes(&self, batch: &Batch<'_>, images: ImageBatch<'_>) -> Result<Vec<u32>> {
        let logits = batch.logits()?;
        let [_, _, height, width] = images.shape();
        let side = self.side;
        if !images.is_empty() && (height, width) != (side, side) {
            return Err(Error::input(format!(
                "images expected {side}x{side}, got {height}x{width}"
            )));
        }
        if !batch.is_empty() && logits.n_cols() != self.n_classes {
            let (expected, got) = (self.n_classes, logits.n_cols());
            return Err(Error::input(format!("logits expected {expected} columns, got {got}")));
        }
        if let Some(image) = logits.rows().position(|row| row.iter().any(|x| !x.is_finite())) {
            return Err(Error::input(format!(
                "logits of image {image} of the batch expected finite values, got {:?}",
                logits.row(image)
            )));
        }
        let image_len = 3 * side * side;
        if let Some(i) = images.values().iter().position(|x| !x.is_finite()) {
            let (image, got) = (i / image_len, images.values()[i]);
            return Err(Error::input(format!(
                "pixels of image {image} of the batch expected finite values, got {got}"
            )));
        }
        Ok(logits.rows().map(predicted).collect())
    }
}

/// The host's own errors go back as they came.
fn plain(err: DenoiseError) -> Error {
    match err {
        DenoiseError::Caller(refusal) => match refusal.downcast::<Error>() {
            Ok(err) => *err,
            Err(other) => Error::new(other.to_string()),
        },
        err @ (DenoiseError::Images { .. } | DenoiseError::Length { .. }) => {
            Error::input(in_one_line(&err))
        }
        err => Error::new(in_one_line(&err)),
    }
}

/// An error with its causes in one line; a hint keeps its own line, because it comes last.
fn in_one_line(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn example() -> Example {
    // A ramp and stripes, 4x4.
    let ramp: Vec<f32> = (0..48).map(|i| i as f32 / 47.0).collect();
    let stripes: Vec<f32> = (0..48).map(|i| if i % 4 < 2 { 0.9 } else { 0.2 }).collect();
    // The scores are this implementation's own: the formula is held against the reference by the
    // golden tests, with another network and given noise.
    Example::of_images(&[&ramp, &stripes], &[0.298_103, 0.411_953])
        .head(&[&[4.0, -2.0, 0.0], &[-2.0, 4.0, -1.0], &[0.0, -1.0, 4.0]], &[0.1, 0.2, 0.3])
        .param("untrained", true)
        .param("steps", 10)
        .param("timesteps", vec![0, 120, 360])
        .param("repeats", 2)
        // Convolutions add up in another order on other machines.
        .tolerance(1e-3)
}

#[cfg(test)]
mod tests;
