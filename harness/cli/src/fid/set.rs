//! One of the two sets: from what was named to its statistics.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use oodbench_diffusion::fid::{FidError, Moments, Statistics};
use oodbench_engine::text::chain;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::device::is_out_of_memory;
use oodbench_nn::inception::{FILE_HINT, Inception, N_FEATURES, Pixels};

use super::folder::{batches, images_in};
use super::progress::Count;
use super::sampled::sampled;
use super::{FidArgs, failure};
use crate::diffusion::Steps;
use crate::exit::{Failure, OUT_OF_MEMORY, SETUP, USAGE};
use crate::observer::Talk;

/// A set as it was named.
pub(super) enum Set {
    /// A file, read.
    Statistics(PathBuf, Statistics),
    /// A folder and its images.
    Folder(PathBuf, Vec<PathBuf>),
    /// So many images of a diffusion network.
    Sample(usize),
}

/// A set with its statistics.
pub(super) struct Measured {
    /// As it was named.
    pub(super) name: String,
    /// Unknown of a file of statistics.
    pub(super) n_images: Option<u64>,
    pub(super) statistics: Statistics,
}

impl Set {
    /// Reads a file of statistics, or lists a folder.
    pub(super) fn open(path: &Path, recursive: bool) -> Result<Self, Failure> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned(), images_in(path, recursive)?));
        }
        if path.is_file() && path.extension().is_none_or(|ending| ending != "npz") {
            return Err(Failure {
                message: format!(
                    "read `{}`: expected a folder of images or an `.npz` file",
                    path.display()
                ),
                hint: None,
                code: USAGE,
            });
        }
        Ok(Self::Statistics(path.to_owned(), Statistics::read(path).map_err(failure)?))
    }

    /// Computes the statistics.
    pub(super) fn measure(
        &self,
        args: &FidArgs,
        network: Option<&Network>,
        steps: &mut Steps,
    ) -> Result<Measured, Failure> {
        let network = || network.expect("whatever is not statistics has the network loaded");
        let (name, moments) = match self {
            Self::Statistics(path, statistics) => {
                let name = path.display().to_string();
                return Ok(Measured { name, n_images: None, statistics: statistics.clone() });
            }
            Self::Folder(path, files) => {
                let name = path.display().to_string();
                (name, of_files(network(), path, files, &steps.talk)?)
            }
            Self::Sample(count) => {
                (format!("{count} samples"), sampled(network(), args, *count, steps)?)
            }
        };
        let n_images = moments.n_images();
        if n_images < N_FEATURES as u64 {
            steps.talk.line(&format!(
                "warning: {name}: {n_images} images are fewer than the {N_FEATURES} features; the \
                 distance of small sets comes out too great, so compare sets of equal size only"
            ));
        }
        let statistics = moments.finish().map_err(|error| Failure {
            message: format!("measure {name}: {error}"),
            hint: None,
            code: SETUP,
        })?;
        Ok(Measured { name, n_images: Some(n_images), statistics })
    }
}

fn of_files(
    network: &Network,
    path: &Path,
    files: &[PathBuf],
    talk: &Talk,
) -> Result<Moments, Failure> {
    let mut moments = Moments::new(N_FEATURES);
    let mut count = Count::begin(talk, &path.display().to_string(), files.len());
    batches(files, network.batch_size, &mut |images| {
        let pixels: Vec<Pixels<'_>> = images
            .iter()
            .map(|image| Pixels {
                width: image.width as usize,
                height: image.height as usize,
                rgb: &image.pixels,
            })
            .collect();
        network.gather(&pixels, &mut moments)?;
        count.advance(pixels.len());
        Ok(())
    })?;
    count.end();
    Ok(moments)
}

fn ran_badly(error: candle_core::Error) -> Failure {
    let is_full = is_out_of_memory(&error);
    let failure = Failure::from(anyhow::Error::from(error).context("run Inception"));
    match is_full {
        true => Failure {
            hint: Some("a smaller `--batch-size`, which Inception takes at once too".to_owned()),
            code: OUT_OF_MEMORY,
            ..failure
        },
        false => failure,
    }
}

/// Inception, and how many images it takes at once.
pub(super) struct Network {
    inception: Inception,
    pub(super) batch_size: usize,
}

impl Network {
    pub(super) fn load(
        path: Option<&Path>,
        device: &Device,
        batch_size: usize,
    ) -> Result<Self, Failure> {
        let refused = |message: String, code| {
            let hint = Some(FILE_HINT.to_owned());
            Failure { message, hint, code }
        };
        let path = path.ok_or_else(|| {
            let message = "images expected the weights of Inception, got no `--inception`";
            refused(message.to_owned(), USAGE)
        })?;
        let file = StateDict::open(path).map_err(|error| refused(chain(&error), SETUP))?;
        let inception =
            Inception::load(&file, device).map_err(|error| refused(chain(&error), SETUP))?;
        Ok(Self { inception, batch_size })
    }

    /// Adds the features of images.
    pub(super) fn gather(
        &self,
        images: &[Pixels<'_>],
        moments: &mut Moments,
    ) -> Result<(), Failure> {
        for images in images.chunks(self.batch_size) {
            let features = self
                .inception
                .features_of(images)
                .and_then(|features: Tensor| features.flatten_all()?.to_vec1::<f32>())
                .map_err(ran_badly)?;
            moments.push(&features).map_err(|error: FidError| failure(error))?;
        }
        Ok(())
    }
}
