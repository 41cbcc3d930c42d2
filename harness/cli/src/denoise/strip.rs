//! `denoise strip`: what the process does to some images, as a picture and as numbers.
//!
//! A row of the picture is an image: as it is, then for each timestep with its noise and denoised
//! from there. A line on stdout has the changes that a score would be read off.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use clap::Args;
use oodbench_datasets::{Preprocess, RgbImage, Role, decode};
use oodbench_diffusion::denoise::{
    Change, DenoiseError, Group, Images, Mode, Space, Subjects, changes, noise,
};
use oodbench_diffusion::picture::{Grid, Picture, PictureError, Range};
use oodbench_engine::image::{image_key, images};
use oodbench_engine::text::chain;

use super::process::{Process, ProcessArgs, Scene, refused};
use crate::diffusion::check_place;
use crate::exit::{CELLS_FAILED, DONE, Failure, SETUP, WRITE_FAILED, print};
use crate::observer::Talk;

/// Images of each set that are shown when none are named.
const OF_EACH_SET: usize = 2;

/// Options of `denoise strip`.
#[derive(Debug, Args)]
pub(super) struct StripArgs {
    /// Image files, which are brought to the size of the benchmark's images; two of each of its sets
    /// where there are none.
    images: Vec<PathBuf>,
    #[command(flatten)]
    process: ProcessArgs,
    /// The picture.
    #[arg(long, value_name = "FILE.png", default_value = "strip.png")]
    out: PathBuf,
}

/// Images to be shown.
#[derive(Default)]
struct Shown {
    /// What each is called.
    names: Vec<String>,
    keys: Vec<u64>,
    /// `[image, 3, height, width]` in `[0, 1]`
    values: Vec<f32>,
    size: Option<(usize, usize)>,
}

pub(super) fn run(args: &StripArgs) -> Result<u8, Failure> {
    let talk = args.process.begin()?;
    check_place(&args.out)?;
    let scene = Scene::open(&args.process)?;
    let shown = match args.images.is_empty() {
        true => of_benchmark(&scene, &talk)?,
        false => of_files(&scene, &args.images, &talk)?,
    };
    let Some(size) = shown.size else {
        let message = format!("benchmark `{}` has no images to show", scene.benchmark.name);
        return Err(Failure { message, hint: Some("name image files".to_owned()), code: SETUP });
    };
    let process = scene.process(size, &talk)?;
    let images = Images::new(&shown.values, size).map_err(|error| failed(&error))?;
    let classes = process.classes(images)?;
    let denoised = denoise(&process, images, &classes, &shown.keys)?;
    process.say_refused(&talk);
    let png = draw(&process, images, &classes, &shown.keys, &denoised)?;
    write(&args.out, &png)?;
    print(&table(&shown.names, &classes, &args.process.timesteps, &denoised))?;
    talk.note(&format!("\n{}", legend(&args.process.timesteps, &args.out)));
    Ok(DONE)
}

fn failed(error: &dyn std::error::Error) -> Failure {
    let message = format!("denoise: {}", chain(error));
    Failure { message, hint: None, code: CELLS_FAILED }
}

/// Some images of each scored set.
fn of_benchmark(scene: &Scene<'_>, talk: &Talk) -> Result<Shown, Failure> {
    let mut shown = Shown::default();
    for set in scene.sets() {
        if !matches!(set.set.role, Role::IdTest | Role::Near | Role::Far) {
            continue;
        }
        let name = format!("{}/{}", set.set.role, set.set.name);
        let pack = scene.prepare(set, Some(OF_EACH_SET), talk)?;
        for i in 0..pack.len() {
            let size = (pack.height() as usize, pack.width() as usize);
            shown.add(
                format!("{name} {}", pack.id(i)),
                pack.id(i),
                size,
                images(&pack, i..i + 1),
            )?;
        }
    }
    Ok(shown)
}

/// Image files, preprocessed as the benchmark's; brought to the size of its ID images where it says
/// no size: both networks were trained on that.
fn of_files(scene: &Scene<'_>, paths: &[PathBuf], talk: &Talk) -> Result<Shown, Failure> {
    let own = scene.benchmark.preprocess;
    let side = match own.crop {
        Some(_) => None,
        None => scene.side(talk)?,
    };
    let mut shown = Shown::default();
    for path in paths {
        let name = path.display().to_string();
        let fail = |error: &dyn std::error::Error| Failure {
            message: format!("read `{name}`: {}", chain(error)),
            hint: None,
            code: SETUP,
        };
        let bytes = std::fs::read(path).map_err(|error| fail(&error))?;
        let image = decode(&bytes).map_err(|error| fail(&error))?;
        let preprocess = match side {
            Some(side) if (image.width, image.height) != (side, side) => {
                Preprocess { resize: Some(side), crop: Some(side) }
            }
            _ => own,
        };
        let image = preprocess.apply(&image).map_err(|error| fail(&error))?;
        let size = (image.height as usize, image.width as usize);
        let values = planes(&image);
        shown.add(name.clone(), &name, size, values)?;
    }
    Ok(shown)
}

/// `[3, height, width]` in `[0, 1]`.
fn planes(image: &RgbImage) -> Vec<f32> {
    let channel = |c: usize| image.pixels.iter().skip(c).step_by(3);
    (0..3).flat_map(|c| channel(c).map(|&byte| f32::from(byte) / 255.0)).collect()
}

impl Shown {
    fn add(
        &mut self,
        name: String,
        id: &str,
        size: (usize, usize),
        values: Vec<f32>,
    ) -> Result<(), Failure> {
        let expected = *self.size.get_or_insert(size);
        if size != expected {
            return Err(Failure {
                message: format!(
                    "image `{name}` expected {}x{} as the first, got {}x{}",
                    expected.0, expected.1, size.0, size.1
                ),
                hint: None,
                code: SETUP,
            });
        }
        self.keys.push(image_key(id));
        self.names.push(name);
        self.values.extend(values);
        Ok(())
    }
}

/// What is kept of the denoised images.
struct Denoised {
    /// By timestep: the first repeat of each image, `[image, 3, height, width]`.
    pictures: Vec<Vec<f32>>,
    /// By space and change: one number for each image.
    changes: Vec<(Space, Change, Vec<f32>)>,
}

fn denoise(
    process: &Process<'_>,
    images: Images<'_>,
    classes: &[u32],
    keys: &[u64],
) -> Result<Denoised, Failure> {
    let mut scoring = process.scoring();
    let (n_timesteps, repeats) = (scoring.timesteps.len(), scoring.repeats);
    // A group is filled up; with few images that would be most of the work.
    let branches = scoring.denoiser.batch / scoring.denoiser.rows_at_once().max(1);
    let enough = images.len() * repeats * branches.max(1);
    scoring.denoiser.batch = scoring.denoiser.batch.min(enough);
    let global = (1..n_timesteps).map(|nth| Change { mode: Mode::Global, nth });
    let global: Vec<Change> = global.collect();
    let kinds = Space::ALL.into_iter().flat_map(|s| global.iter().map(move |&c| (s, c)));
    let mut denoised = Denoised {
        pictures: vec![Vec::new(); n_timesteps],
        changes: kinds.map(|(space, change)| (space, change, Vec::new())).collect(),
    };
    let noise = |image: usize, repeat, len| noise::noise(process.seed(), keys[image], repeat, len);
    let classify = |images: Images<'_>| process.classify(images);
    let mut keep = |group: Group<'_>| -> Result<(), DenoiseError> {
        let (n_images, image_len) = (group.images.len(), images.image_len());
        for (pictures, sample) in denoised.pictures.iter_mut().zip(group.samples) {
            let of_images = sample.images.chunks_exact(image_len * repeats).take(n_images);
            pictures.extend(of_images.flat_map(|repeats| &repeats[..image_len]));
        }
        let at_once = scoring.images_at_once();
        for (space, change, found) in &mut denoised.changes {
            let [before, after] = change.pair().map(|i| group.samples[i].space(*space));
            found.extend(changes(before, after, at_once, repeats)?.into_iter().take(n_images));
        }
        Ok(())
    };
    scoring
        .for_each_group(images, classes, &noise, Some(&classify), &mut || Ok(()), &mut keep)
        .map_err(|error| refused("denoise", &error))?;
    Ok(denoised)
}

/// The picture, as PNG.
fn draw(
    process: &Process<'_>,
    images: Images<'_>,
    classes: &[u32],
    keys: &[u64],
    denoised: &Denoised,
) -> Result<Vec<u8>, Failure> {
    let scoring = process.scoring();
    let image_len = images.image_len();
    let noise: Vec<f32> =
        keys.iter().flat_map(|&key| noise::noise(process.seed(), key, 0, image_len)).collect();
    let subjects = Subjects { images, classes, noise: &noise, repeats: 1 };
    let mut columns = vec![images.values().to_vec()];
    for (&timestep, pictures) in scoring.timesteps.iter().zip(&denoised.pictures) {
        let noised = scoring.denoiser.noised(&subjects, timestep);
        columns.push(noised.map_err(|error| failed(&error))?);
        columns.push(pictures.clone());
    }
    let cells: Vec<f32> = (0..images.len())
        .flat_map(|i| columns.iter().flat_map(move |column| &column[i * image_len..][..image_len]))
        .copied()
        .collect();
    let (height, width) = images.size();
    let draw = || -> Result<Vec<u8>, PictureError> {
        let shape = (images.len() * columns.len(), 3, height, width);
        let cells = Tensor::from_vec(cells, shape, &Device::Cpu)?;
        let layout = Grid::new(columns.len()).legible(width);
        Picture::grid(&cells, Range::Unit, &layout)?.png()
    };
    draw().map_err(|error| Failure {
        message: format!("draw the strip: {}", chain(&error)),
        hint: None,
        code: CELLS_FAILED,
    })
}

fn write(path: &Path, png: &[u8]) -> Result<(), Failure> {
    oodbench_record::write_atomically(path, png).map_err(|error| Failure {
        message: chain(&error),
        hint: None,
        code: WRITE_FAILED,
    })
}

/// Images line by line, with the change from the first timestep to each other one.
fn table(names: &[String], classes: &[u32], timesteps: &[usize], denoised: &Denoised) -> String {
    let mut lines = vec![vec!["image".to_owned(), "class".to_owned()]];
    let heads = denoised.changes.iter().map(|(space, change, _)| {
        let space = match space {
            Space::Image => "image",
            Space::Feature => "feature",
            Space::Logit => "logit",
        };
        format!("{space}@{}", timesteps[change.nth])
    });
    lines[0].extend(heads);
    for (i, (name, class)) in names.iter().zip(classes).enumerate() {
        let numbers = denoised.changes.iter().map(|(_, _, found)| format!("{:.4}", found[i]));
        lines.push([name.clone(), class.to_string()].into_iter().chain(numbers).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        cells.collect::<String>() + "\n"
    };
    lines.iter().map(line).collect()
}

/// What the columns of the picture are.
fn legend(timesteps: &[usize], out: &Path) -> String {
    let columns = timesteps.iter().map(|t| format!("noised at {t}, denoised from {t}"));
    let columns: Vec<String> = std::iter::once("the image".to_owned()).chain(columns).collect();
    format!("`{}`, from left to right: {}", out.display(), columns.join("; "))
}
