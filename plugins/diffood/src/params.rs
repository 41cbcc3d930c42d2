//! The parameters of DiffOOD: their defaults, what they may be, and what they mean for the process.

use std::path::PathBuf;

use candle_core::Device;
use oodbench_diffusion::batch::Batch as BatchSize;
use oodbench_diffusion::checkpoint::LoadedModel;
use oodbench_diffusion::denoise::{Change, Denoiser, MOST_AT_ONCE, Mode, Readout, Space};
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_nn::precision::Precision;
use oodbench_sdk::prelude::*;

/// Parameters of [`DiffOod`](crate::DiffOod).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    pub(crate) weights: Option<String>,
    pub(crate) config: Option<String>,
    pub(crate) method: Method,
    pub(crate) steps: usize,
    pub(crate) indexing: Indexing,
    pub(crate) timesteps: Vec<usize>,
    pub(crate) repeats: usize,
    pub(crate) beta: f64,
    pub(crate) space: Space,
    pub(crate) mode: Mode,
    pub(crate) change: Option<usize>,
    pub(crate) batch: BatchSize,
    pub(crate) precision: Precision,
    pub(crate) graphs: bool,
    pub(crate) untrained: bool,
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
            batch: BatchSize::default(),
            precision: Precision::F32,
            graphs: true,
            untrained: false,
        }
    }
}

impl Params {
    pub(crate) fn check(&self) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::parameter("steps", "at least 1", self.steps));
        }
        let from_one = format!("from 1 to {MOST_AT_ONCE}");
        if !(1..=MOST_AT_ONCE).contains(&self.repeats) {
            return Err(Error::parameter("repeats", &from_one, self.repeats));
        }
        if self.batch.is_out_of_range() {
            return Err(Error::parameter("batch", &format!("{from_one}, or auto"), self.batch));
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

    /// Numbers that the device does not have are refused before anything is computed.
    pub(crate) fn check_on(&self, device: &str) -> Result<()> {
        if device == "cpu" && self.precision != Precision::F32 {
            return Err(Error::parameter("precision", "f32 on the CPU", self.precision));
        }
        Ok(())
    }

    /// How the score is read off the denoised images.
    pub(crate) fn readout(&self) -> Readout {
        let nth = self.change.unwrap_or(self.timesteps.len() - 1);
        Readout { space: self.space, change: Change { mode: self.mode, nth } }
    }

    /// The process on a network.
    pub(crate) fn denoiser<'a>(
        &self,
        loaded: &'a LoadedModel,
        device: &'a Device,
        batch: usize,
    ) -> Denoiser<'a> {
        Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: self.method,
            steps: self.steps,
            indexing: self.indexing,
            beta: self.beta,
            batch,
            device,
        }
    }

    /// Where the network comes from; `asset` gives the file that a parameter stands for.
    pub(crate) fn origin(&self, asset: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Origin> {
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
pub(crate) enum Origin {
    /// A file, and what it does not say of itself.
    File { weights: PathBuf, config: Option<PathBuf> },
    /// [`network::untrained`].
    Untrained,
}

/// Every parameter, as users are told of it.
pub(crate) fn described() -> Vec<Param> {
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
            "images in one evaluation of the diffusion network, repeats and both branches of the guidance counted; bounds the memory. `auto` finds the largest power of two that fits a GPU and is of use",
            "ours; scores depend on it by rounding alone",
        )
        .or_auto(),
        Param::new(
            "precision",
            "what the diffusion network computes in: f32, or on a GPU tf32 or bf16",
            "ours",
        ),
        Param::new(
            "graphs",
            "whether the network's steps on a GPU are recorded once and replayed as CUDA graphs",
            "ours; scores depend on it by rounding alone",
        ),
        Param::new(
            "untrained",
            "use a small network made by formula instead of `weights`: for the worked example alone",
            "ours",
        ),
    ]
}
