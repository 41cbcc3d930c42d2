//! `oodbench interpolate`: what lies between two images, as the diffusion network sees it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use oodbench_datasets::{
    DataDir, ImageSource, Located, Preprocess, RgbImage, Role, decode, locate,
};
use oodbench_diffusion::interpolate::{Angle, InterpolateError, Interpolated, Interpolation};
use oodbench_diffusion::picture::{Grid, Picture, Range};
use oodbench_engine::text::chain;
use oodbench_nn::device::is_out_of_memory;

use crate::diffusion::{DiffusionArgs, check_folder, check_place, no_picture, say_refused, write};
use crate::environment as env;
use crate::exit::{DONE, Failure, SETUP, UNFORESEEN, USAGE, print};

/// What is shown when no images are named: some pairs of the benchmark.
const SHOWN: [usize; 6] = [0, 1, 13, 26, 38, 47];

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  oodbench interpolate                                 digits of the embedded benchmark
  oodbench interpolate 3 17 40 52 --out digits.png     two pairs of them, by number
  oodbench interpolate cat.png dog.png --weights ema.ckpt --config ddim_cifar10_base.yml
  oodbench interpolate 0 1 --benchmark cifar10 --data DIR --weights FILE --singles temp/sample

Each pair has three rows, from the first image at the left to the second at the right: the first
image with the encoded noise of the second, denoised from ever noisier steps; the second with that
of the first, from ever cleaner ones; and mixtures of both noises, denoised.")]
pub(crate) struct InterpolateArgs {
    /// Images, two by two: files, or numbers of images of the benchmark's ID test set.
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// The benchmark that numbers are looked up in: a name, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "glyphs")]
    benchmark: String,
    /// The folder with the images of the benchmark.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// The angle between noises that mixtures follow: each pair's own, or, as in the reference,
    /// one for all pairs.
    #[arg(long, value_enum, default_value = "pair")]
    angle: AngleArg,
    /// The picture.
    #[arg(long, value_name = "FILE.png", default_value = "interpolation.png")]
    out: PathBuf,
    /// Write single images to this folder too, named as the reference names them.
    #[arg(long, value_name = "DIR")]
    singles: Option<PathBuf>,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

/// [`Angle`], as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AngleArg {
    Pair,
    Batch,
}

/// Runs the command.
///
/// # Errors
/// Arguments that make no sense, images or a network that cannot be read, and files that cannot be
/// written.
pub(crate) fn run(args: &InterpolateArgs) -> Result<u8, Failure> {
    if !args.images.len().is_multiple_of(2) {
        let message = format!("images expected two by two, got {}", args.images.len());
        return Err(Failure::usage(message, None));
    }
    let mut steps = args.diffusion.begin()?;
    check_place(&args.out)?;
    args.singles.as_deref().map_or(Ok(()), check_folder)?;
    let network = args.diffusion.load(&steps)?;
    let side = network.loaded.model.image_size();
    let images = images(args, side)?;
    let failed = |error: candle_core::Error| Failure::from(anyhow::Error::from(error));
    let every_other = |from: usize| {
        let images: Vec<&Tensor> = images.iter().skip(from).step_by(2).collect();
        Tensor::stack(&images, 0).and_then(|images| images.to_device(&network.device))
    };
    let (first, second) = (every_other(0).map_err(failed)?, every_other(1).map_err(failed)?);
    let interpolation = Interpolation {
        model: network.loaded.model.as_ref(),
        sampler: network.sampler(),
        angle: match args.angle {
            AngleArg::Pair => Angle::PerPair,
            AngleArg::Batch => Angle::WholeBatch,
        },
        batch: network.batch(0.0, images.len(), &steps.talk)?,
    };
    steps.begin("interpolate", interpolation.evaluations(images.len() / 2));
    let outcome = interpolation.run(&first, &second, &mut || {
        steps.tick();
        Ok(())
    });
    let seconds = steps.end();
    let found = outcome.map_err(|error| match is_out_of_memory(&error) {
        true => {
            let fits = network.evaluation(0.0).fits_below(interpolation.batch);
            Failure::out_of_memory(chain(&error), fits)
        }
        false => refused(&error),
    })?;
    say_refused(&network.loaded, &steps.talk);
    let pictures = Pictures::new(&first, &second, &found)?;
    if let Some(folder) = &args.singles {
        pictures.write_singles(folder, &found.strides)?;
    }
    write(&pictures.grid(side), &args.out)?;
    let n = images.len() / 2;
    let pairs = if n == 1 { "pair" } else { "pairs" };
    steps.talk.note(&format!("{n} {pairs} in {seconds:.1} s"));
    print(&format!("{}\n", args.out.display()))?;
    Ok(DONE)
}

/// The images that were named, `[3, side, side]` in `[0, 1]` each.
fn images(args: &InterpolateArgs, side: usize) -> Result<Vec<Tensor>, Failure> {
    let named = match args.images.is_empty() {
        true => SHOWN.iter().map(usize::to_string).collect(),
        false => args.images.clone(),
    };
    let mut test_set = None;
    let mut images = Vec::with_capacity(named.len());
    for name in &named {
        let path = Path::new(name);
        let image = match name.parse::<usize>() {
            Ok(number) if !path.exists() => {
                let set = match &test_set {
                    Some(set) => set,
                    None => test_set.insert(id_test(args)?),
                };
                of_benchmark(set, number, &args.benchmark)?
            }
            _ => of_file(path)?,
        };
        images.push(fitted(image, side).map_err(|error| Failure {
            message: format!("fit image `{name}`: {error:#}"),
            hint: None,
            code: SETUP,
        })?);
    }
    Ok(images)
}

/// The ID test set of the benchmark, and its preprocessing.
fn id_test(args: &InterpolateArgs) -> Result<(Box<dyn ImageSource>, Preprocess), Failure> {
    let (benchmark, _) = env::benchmark(&args.benchmark)?;
    let scratch = env::cache(None)?.join("scratch");
    let mut sets = locate(&benchmark, &DataDir::new(&args.data, scratch)).into_iter();
    match sets.find(|located| located.set.role == Role::IdTest) {
        Some(Located { source, preprocess, .. }) => Ok((source?, preprocess)),
        None => Err(Failure {
            message: format!("benchmark `{}` expected an ID test set, got none", benchmark.name),
            hint: Some("name image files".to_owned()),
            code: SETUP,
        }),
    }
}

fn of_benchmark(
    (source, preprocess): &(Box<dyn ImageSource>, Preprocess),
    number: usize,
    benchmark: &str,
) -> Result<RgbImage, Failure> {
    if number >= source.len() {
        let message = format!(
            "image {number} of `{benchmark}` expected a number below {}, those of the ID test set",
            source.len()
        );
        return Err(Failure::usage(message, None));
    }
    let image = source.read(number)?;
    preprocess.apply(&image).map_err(|error| Failure {
        message: format!("prepare image {number} of `{benchmark}`: {error}"),
        hint: None,
        code: SETUP,
    })
}

fn of_file(path: &Path) -> Result<RgbImage, Failure> {
    let fail = |error: &dyn std::error::Error| Failure {
        message: format!("read image `{}`: {}", path.display(), chain(error)),
        hint: None,
        code: SETUP,
    };
    let bytes = std::fs::read(path).map_err(|error| fail(&error))?;
    decode(&bytes).map_err(|error| fail(&error))
}

/// The image as the network takes it: resized to its shorter side and cut square where it has
/// another size.
fn fitted(image: RgbImage, side: usize) -> anyhow::Result<Tensor> {
    let wanted = u32::try_from(side)?;
    let image = match (image.width, image.height) == (wanted, wanted) {
        true => image,
        false => Preprocess { resize: Some(wanted), crop: Some(wanted) }.apply(&image)?,
    };
    let pixels = Tensor::from_vec(image.pixels, (side, side, 3), &Device::Cpu)?;
    Ok((pixels.permute((2, 0, 1))?.to_dtype(DType::F32)? / 255.0)?)
}

/// Everything that is shown, as pictures.
struct Pictures {
    ends: [Vec<Picture>; 2],
    /// By study, by pair: its steps.
    studies: [Vec<Vec<Picture>>; 3],
}

impl Pictures {
    fn new(first: &Tensor, second: &Tensor, found: &Interpolated) -> Result<Self, Failure> {
        let each = |xs: &Tensor| Picture::each(xs, Range::Unit);
        let study = |study: &Tensor| {
            (0..study.dim(0)?).map(|pair| each(&study.get(pair)?)).collect::<Result<Vec<_>, _>>()
        };
        let all = || {
            Ok(Self {
                ends: [each(first)?, each(second)?],
                studies: [study(&found.first)?, study(&found.second)?, study(&found.between)?],
            })
        };
        all().map_err(|error| no_picture(&error))
    }

    /// Three rows for each pair.
    fn grid(&self, side: usize) -> Picture {
        let [first, second] = &self.ends;
        let mut cells = Vec::new();
        for (pair, (first, second)) in first.iter().zip(second).enumerate() {
            for (nth, study) in self.studies.iter().enumerate() {
                cells.push(first.clone());
                let steps = study[pair].iter().cloned();
                // The second image's way leads to the first.
                match nth == 1 {
                    true => cells.extend(steps.rev()),
                    false => cells.extend(steps),
                }
                cells.push(second.clone());
            }
        }
        let columns = self.studies[0].first().map_or(0, Vec::len) + 2;
        Picture::collect(&cells, &Grid { group_rows: 3, ..Grid::new(columns).legible(side) })
    }

    /// `img100-P.png` and `img200-P.png` are the images of pair P, `imgS-P-K.png` is study S after
    /// K strides.
    fn write_singles(&self, folder: &Path, strides: &[usize]) -> Result<(), Failure> {
        for (name, ends) in ["img100", "img200"].iter().zip(&self.ends) {
            for (pair, picture) in ends.iter().enumerate() {
                write(picture, &folder.join(format!("{name}-{}.png", pair + 1)))?;
            }
        }
        for (nth, study) in self.studies.iter().enumerate() {
            for (pair, steps) in study.iter().enumerate() {
                for (k, picture) in strides.iter().zip(steps) {
                    let name = format!("img{}-{}-{k}.png", nth + 1, pair + 1);
                    write(picture, &folder.join(name))?;
                }
            }
        }
        Ok(())
    }
}

/// What the library says, with the remedy where there is one.
fn refused(error: &InterpolateError) -> Failure {
    let (code, hint) = match error {
        InterpolateError::Steps { .. } => (USAGE, Some("`--steps 50` is usual")),
        InterpolateError::NotFinite { .. } => (SETUP, Some("are the weights whole?")),
        _ => (UNFORESEEN, None),
    };
    Failure { message: chain(error), hint: hint.map(str::to_owned), code }
}
