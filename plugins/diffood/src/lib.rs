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
//! default here; `change` names another. Only the two timesteps that a score needs are computed.
//!
//! The reference draws its noise afresh in each run. Here it belongs to the image and the seed
//! ([`noise`]), so that a score depends on neither batch, nor shard, nor order.

pub mod change;
pub mod denoise;
pub mod network;
pub mod noise;

use std::path::PathBuf;

use candle_core::Device;
use oodbench_diffusion::checkpoint::LoadedModel;
use oodbench_diffusion::sampler::Method;
use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use change::{Mode, Space};
use denoise::{Classify, Denoiser, Outputs, Subjects, Tick};
use network::Origin;

/// Parameters of [`DiffOod`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    weights: Option<String>,
    config: Option<String>,
    method: Method,
    steps: usize,
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
        for (name, value) in
            [("steps", self.steps), ("repeats", self.repeats), ("batch", self.batch)]
        {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
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

    /// The two timesteps that the score compares.
    fn compared(&self) -> [usize; 2] {
        let change = self.change.unwrap_or(self.timesteps.len() - 1);
        self.mode.pair(change).map(|i| self.timesteps[i])
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
            Error::new(format!("{}{}", network::chain(err), hint.unwrap_or_default()))
        })?;
        let (n_classes, size) = (data.n_classes(), self.host.image_size()?);
        let loaded = network::load(&origin, size, n_classes, &device)?;
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
        let Some(fitted) = &self.fitted else {
            return Err(Error::new("`score` was called before `fit`"));
        };
        let (images, logits) = (batch.images()?, batch.logits()?);
        let [_, _, height, width] = images.shape();
        let side = fitted.side;
        if !images.is_empty() && (height, width) != (side, side) {
            return Err(Error::input(format!(
                "images expected {side}x{side}, got {height}x{width}"
            )));
        }
        if !batch.is_empty() && logits.n_cols() != fitted.n_classes {
            let (expected, got) = (fitted.n_classes, logits.n_cols());
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
        let classes: Vec<u32> = logits.rows().map(predicted).collect();
        let scoring = Scoring {
            denoiser: Denoiser {
                model: fitted.loaded.model.as_ref(),
                schedule: &fitted.loaded.schedule,
                method: self.params.method,
                steps: self.params.steps,
                beta: self.params.beta,
                batch: self.params.batch,
                device: &fitted.device,
            },
            compared: self.params.compared(),
            repeats: self.params.repeats,
            space: self.params.space,
        };
        let (host, seed, keys) = (&self.host, self.host.seed(), batch.keys());
        let total = scoring.evaluations(images.len());
        let mut done = 0;
        let mut tick = || {
            host.progress(done, total)?;
            done += 1;
            Ok(())
        };
        let noise = |image: usize, repeat, len| noise::noise(seed, keys[image], repeat, len);
        let classify = |images: ImageBatch<'_>| {
            let forward = host.forward(images)?;
            let features = forward.features().values().to_vec();
            Ok(Outputs { features, logits: forward.logits().values().to_vec() })
        };
        let found = scoring.scores(images, &classes, &noise, &classify, &mut tick)?;
        scores.copy_from_slice(&found);
        host.progress(total, total)
    }
}

/// The first class with the greatest logit, as the process is guided by.
pub fn predicted(logits: &[f32]) -> u32 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == greatest).unwrap_or(0) as u32
}

/// The noise of an image's repeat: called with the image's index, the repeat and the length.
pub type Noise<'a> = dyn Fn(usize, usize, usize) -> Vec<f32> + 'a;

/// One way to score images, apart from where classes, noise and the classifier come from.
pub struct Scoring<'a> {
    pub denoiser: Denoiser<'a>,
    /// The two timesteps whose difference is the score.
    pub compared: [usize; 2],
    pub repeats: usize,
    pub space: Space,
}

impl Scoring<'_> {
    /// Images that are worked on at once, so that their repeats fill an evaluation of the
    /// network. What is held in memory follows from it, not from the number of images.
    ///
    /// It is always so many, the last ones being filled up: matrix products round differently at
    /// other sizes, and a score is to be the same to the last bit in whatever company.
    fn images_at_once(&self) -> usize {
        (self.denoiser.rows_at_once() / self.repeats).max(1)
    }

    /// How often [`Scoring::scores`] evaluates the network for so many images.
    pub fn evaluations(&self, n_images: usize) -> usize {
        let n_rows = self.images_at_once() * self.repeats;
        let of_one: usize =
            self.compared.iter().map(|&t| self.denoiser.evaluations(n_rows, t)).sum();
        n_images.div_ceil(self.images_at_once()) * of_one
    }

    /// One score for each image.
    ///
    /// # Shapes
    /// - `images`: `[n, 3, height, width]` in `[0, 1]`
    /// - `classes`: `[n]`, what the classifier predicts for the clean images
    ///
    /// # Errors
    /// What [`Denoiser::sample`] says.
    pub fn scores(
        &self,
        images: ImageBatch<'_>,
        classes: &[u32],
        noise: &Noise<'_>,
        classify: &Classify<'_>,
        tick: &mut Tick<'_>,
    ) -> Result<Vec<f32>> {
        let [n_images, channels, height, width] = images.shape();
        let image_len = channels * height * width;
        if classes.len() != n_images {
            return Err(Error::input(format!(
                "classes expected {n_images} values, got {}",
                classes.len()
            )));
        }
        let classify = match self.space {
            Space::Image => None,
            Space::Feature | Space::Logit => Some(classify),
        };
        let at_once = self.images_at_once();
        let mut scores = Vec::with_capacity(n_images);
        for first in (0..n_images).step_by(at_once) {
            // Where images are lacking, the last one is taken again.
            let chosen: Vec<usize> =
                (first..first + at_once).map(|i| i.min(n_images - 1)).collect();
            let mut pixels = Vec::with_capacity(at_once * image_len);
            let mut noises = Vec::with_capacity(at_once * self.repeats * image_len);
            for &image in &chosen {
                pixels.extend_from_slice(&images.values()[image * image_len..][..image_len]);
                for repeat in 0..self.repeats {
                    noises.extend(noise(image, repeat, image_len));
                }
            }
            let subjects = Subjects {
                images: ImageBatch::new(&pixels, height, width)?,
                classes: &chosen.iter().map(|&image| classes[image]).collect::<Vec<u32>>(),
                noise: &noises,
                repeats: self.repeats,
            };
            let [before, after] =
                self.compared.map(|t| self.denoiser.sample(&subjects, t, classify, tick));
            let (before, after) = (before?, after?);
            let (before, after) = (before.space(self.space), after.space(self.space));
            let changes = change::change(before, after, at_once, self.repeats)?;
            scores.extend(changes.into_iter().take(n_images - first));
        }
        Ok(scores)
    }
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
        Param::new("method", "the sampler: DDIM, PNDM2 or PNDM4", "the reference's readme"),
        Param::new("steps", "steps that the whole schedule would be sampled with", DETECT),
        Param::new("timesteps", "how far images are diffused, ascending; the first is compared with", DETECT),
        Param::new("repeats", "draws of noise for each image, over which the score is averaged", DETECT),
        Param::new("beta", "weight of the classifier-free guidance; 0 for none", DETECT).number(),
        Param::new("space", "where the change is measured: image, feature or logit", TABLE)
            .sweep(["image", "feature", "logit"]),
        Param::new(
            "mode",
            "a timestep is compared with the one before (local) or the first (global)",
            TABLE,
        )
        .sweep(["local", "global"]),
        Param::new(
            "change",
            "which timestep after the first is compared, from 1; by default the last",
            TABLE,
        )
        .integer()
        .sweep([1, 2, 3]),
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
