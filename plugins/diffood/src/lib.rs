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

use std::path::PathBuf;

use candle_core::Device;
use oodbench_diffusion::checkpoint::LoadedModel;
use oodbench_diffusion::denoise::{
    Change, DenoiseError, Denoiser, Images, MOST_AT_ONCE, Mode, Outputs, Readout, Refusal, Scoring,
    Space, network, noise, predicted,
};
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

/// Parameters of [`DiffOod`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    weights: Option<String>,
    config: Option<String>,
    method: Method,
    steps: usize,
    indexing: Indexing,
    timesteps: Vec<usize>,
    repeats: usize,
    beta: f64,
    space: Space,
    mode: Mode,
    change: Option<usize>,
    batch: usize,
    untrained: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            weights: None,
            config: None,
            method: Method::Ddim,
            steps: 50,
            indexing: Indexing::Reference,
            timesteps: vec![0, 120, 240, 360],
            repeats: 4,
            beta: 2.0,
            space: Space::Logit,
            mode: Mode::Global,
            change: None,
            batch: 64,
            untrained: false,
        }
    }
}

impl Params {
    fn check(&self) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::parameter("steps", "at least 1", self.steps));
        }
        for (name, value) in [("repeats", self.repeats), ("batch", self.batch)] {
            if !(1..=MOST_AT_ONCE).contains(&value) {
                let expected = format!("from 1 to {MOST_AT_ONCE}");
                return Err(Error::parameter(name, &expected, value));
            }
        }
        if !self.beta.is_finite() {
            return Err(Error::parameter("beta", "a finite number", self.beta));
        }
        let timesteps = &self.timesteps;
        if timesteps.len() < 2 || timesteps.windows(2).any(|pair| pair[0] >= pair[1]) {
            let expected = "at least two timesteps, each greater than the one before";
            return Err(Error::parameter("timesteps", expected, format!("{timesteps:?}")));
        }
        let last = timesteps.len() - 1;
        match self.change {
            Some(change) if change == 0 || change > last => {
                let expected = format!("1 to {last}, the number of timesteps after the first");
                Err(Error::parameter("change", &expected, change))
            }
            _ => Ok(()),
        }
    }

    /// How the score is read off the denoised images.
    fn readout(&self) -> Readout {
        let nth = self.change.unwrap_or(self.timesteps.len() - 1);
        Readout { space: self.space, change: Change { mode: self.mode, nth } }
    }

    /// The process on a network.
    fn denoiser<'a>(&self, loaded: &'a LoadedModel, device: &'a Device) -> Denoiser<'a> {
        Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: self.method,
            steps: self.steps,
            indexing: self.indexing,
            beta: self.beta,
            batch: self.batch,
            device,
        }
    }

    /// Where the network comes from; `asset` gives the file that a parameter stands for.
    fn origin(&self, asset: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Origin> {
        match (&self.weights, self.untrained) {
            (None, true) => Ok(Origin::Untrained),
            (Some(_), true) => Err(Error::parameter("untrained", "false beside `weights`", true)),
            (Some(_), false) => {
                let config = self.config.as_ref().map(|_| asset("config")).transpose()?;
                Ok(Origin::File { weights: asset("weights")?, config })
            }
            (None, false) => Err(Error::new(
                "parameter `weights` expected a file with a diffusion network, got none\n\n\
                 hint: `--set diffood.weights=FILE`, where FILE was trained on the in-distribution images",
            )),
        }
    }
}

/// Where a network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// A file, and what it does not say of itself.
    File { weights: PathBuf, config: Option<PathBuf> },
    /// [`network::untrained`].
    Untrained,
}

/// DiffOOD.
pub struct DiffOod {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

struct Fitted {
    loaded: LoadedModel,
    device: Device,
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
        Ok(Self { params, host, fitted: None })
    }

    /// Loads the diffusion network. Nothing is learned, and there is no state to save.
    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let origin = self.params.origin(&|name| self.host.asset(name))?;
        let name = self.host.device();
        let device = oodbench_nn::device::device(&name).map_err(|err| {
            let hint = err.hint().map(|hint| format!("\n\nhint: {hint}"));
            Error::new(format!("{}{}", in_one_line(&err), hint.unwrap_or_default()))
        })?;
        let (n_classes, size) = (data.n_classes(), self.host.image_size()?);
        let loaded = match &origin {
            Origin::Untrained => network::check_square(size)
                .and_then(|()| network::untrained(size.0, n_classes, &device)),
            Origin::File { weights, config } => {
                network::load(weights, config.as_deref(), size, n_classes, &device)
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
        self.fitted = Some(Fitted { loaded, device, n_classes, side: size.0 });
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
    fn read_off(&self, batch: &Batch<'_>, readouts: &[Readout], scores: &mut [f32]) -> Result<()> {
        let Some(fitted) = &self.fitted else {
            return Err(Error::new("`score` was called before `fit`"));
        };
        let images = batch.images()?;
        let classes = fitted.classes(batch, images)?;
        let images = Images::new(images.values(), (fitted.side, fitted.side)).map_err(plain)?;
        let scoring = Scoring {
            denoiser: self.params.denoiser(&fitted.loaded, &fitted.device),
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
        scores.copy_from_slice(&found.map_err(plain)?);
        host.progress(total, total)
    }
}

impl Fitted {
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

fn described() -> Vec<Param> {
    const DETECT: &str = "the reference's detection run";
    const TABLE: &str = "the reference's `detect/ood_detect.py`";
    vec![
        Param::new(
            "weights",
            "the diffusion network: safetensors of ours, or the reference's .ckpt",
            "none can be had by default",
        )
        .asset(),
        Param::new(
            "config",
            "JSON or TOML with `Model` and `Schedule`, for weights that do not describe themselves; without it their network is read off the tensors, and the schedule is linear",
            "ours",
        )
        .asset(),
        Param::new("method", "the sampler: DDIM, PNDM2, PNDM4, NDM1, NDM4 or PF", "the reference's readme"),
        Param::new("steps", "steps that the whole schedule would be sampled with", DETECT),
        Param::new(
            "indexing",
            "which state of the sampler an image is in: `reference` as the authors have it, one step too early, or `aligned`",
            "the reference's code",
        ),
        Param::new("timesteps", "how far images are diffused, ascending; the first is compared with", DETECT),
        Param::new("repeats", "draws of noise for each image, over which the score is averaged", DETECT),
        Param::new("beta", "weight of the classifier-free guidance; 0 for none", DETECT).number(),
        Param::new("space", "where the change is measured: image, feature or logit", TABLE)
            .sweep(["image", "feature", "logit"])
            .readout(),
        Param::new(
            "mode",
            "a timestep is compared with the one before (local) or the first (global)",
            TABLE,
        )
        .sweep(["local", "global"])
        .readout(),
        Param::new(
            "change",
            "which timestep after the first is compared, from 1; by default the last",
            TABLE,
        )
        .integer()
        .sweep([1, 2, 3])
        .readout(),
        Param::new(
            "batch",
            "images in one evaluation of the diffusion network, repeats and both branches of the guidance counted; bounds the memory",
            "ours; scores depend on it by rounding alone",
        ),
        Param::new(
            "untrained",
            "use a small network made by formula instead of `weights`: for the worked example alone",
            "ours",
        ),
    ]
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
