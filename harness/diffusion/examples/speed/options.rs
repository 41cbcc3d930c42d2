//! What the program is started with.

use std::error::Error;

use candle_core::Device;
use oodbench_nn::device::device;
use oodbench_nn::precision::Precision;

/// Options of the whole process; the tasks come on standard input.
pub(crate) struct Options {
    /// `--device cpu`, the default, or another that this build has.
    pub(crate) device: Device,
    /// `--precision f32`, the default, `tf32` or `bf16`: of networks and products.
    pub(crate) precision: Precision,
    /// `--graphs on`, the default, or `off`: whether evaluations of a sampler are captured.
    pub(crate) graphs: bool,
    /// `--steps 10`: steps that the whole schedule would be sampled with.
    pub(crate) steps: usize,
    /// `--repeats 1`: draws of noise for each image.
    pub(crate) repeats: usize,
    /// `--batch N`: rows in one evaluation of the U-Net by DiffOOD, both branches counted;
    /// by default all rows of a task.
    pub(crate) batch: Option<usize>,
    /// `--channels 128`: of the U-Net's first level.
    pub(crate) channels: usize,
    /// `--side 32`: of the images.
    pub(crate) side: usize,
}

impl Options {
    pub(crate) fn from_args(
        mut args: impl Iterator<Item = String>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            device: Device::Cpu,
            precision: Precision::F32,
            graphs: true,
            steps: 10,
            repeats: 1,
            batch: None,
            channels: 128,
            side: 32,
        };
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("`{name}` expected a value"))?;
            match name.as_str() {
                "--device" => options.device = device(&value)?,
                "--precision" => options.precision = value.parse()?,
                "--graphs" => {
                    options.graphs = match value.as_str() {
                        "on" => true,
                        "off" => false,
                        _ => {
                            return Err(
                                format!("`--graphs` expected on or off, got `{value}`").into()
                            );
                        }
                    }
                }
                "--steps" => options.steps = value.parse()?,
                "--repeats" => options.repeats = value.parse()?,
                "--batch" => options.batch = Some(value.parse()?),
                "--channels" => options.channels = value.parse()?,
                "--side" => options.side = value.parse()?,
                _ => return Err(format!("unknown option `{name}`").into()),
            }
        }
        options.precision.check(&options.device)?;
        Ok(options)
    }
}
