//! `oodbench sample`: images from noise, as PNG files.

use std::path::{Path, PathBuf};

use clap::Args;
use oodbench_diffusion::picture::{Grid, Picture, Range};
use oodbench_diffusion::sample::{Classes, Request, SampleError, sample};
use oodbench_engine::text::chain;

use crate::diffusion::{
    DiffusionArgs, Steps, check_folder, check_place, positive, say_refused, write,
};
use crate::exit::{DONE, Failure, SETUP, UNFORESEEN, USAGE, print};

/// So many images go into the grid at most.
const IN_GRID: usize = 64;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  oodbench sample                                      64 images of the embedded network
  oodbench sample --class 3 --n 16 --method DDIM --steps 20
  oodbench sample --weights ema.ckpt --config ddim_cifar10_cond.yml --n 50000 --out samples
  oodbench sample --first 25000 --n 25000 --out samples    the second half, on another machine

The folder holds single images alone, 000000.png and so on, so that `oodbench fid DIR …` can measure
it. An image follows from the seed and its number; neither the batch nor the other images matter.")]
pub(crate) struct SampleArgs {
    /// How many images.
    #[arg(long, value_name = "N", default_value = "64", value_parser = positive)]
    n: usize,
    /// The number of the first image.
    #[arg(long, value_name = "N", default_value = "0")]
    first: usize,
    /// What the images show: `random` for any class, `all` for one after the other, or a number.
    #[arg(long, value_name = "random|all|K", default_value = "random", value_parser = classes)]
    class: Classes,
    /// Weight of the classifier-free guidance; 0 for none.
    #[arg(long, value_name = "NUMBER", default_value = "2", allow_negative_numbers = true)]
    beta: f64,
    /// The seed of noise and classes.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// The folder for the images.
    #[arg(long, value_name = "DIR", default_value = "samples")]
    out: PathBuf,
    /// The picture with the first 64 of them [default: DIR-grid.png, beside the folder].
    #[arg(long, value_name = "FILE.png")]
    grid: Option<PathBuf>,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

fn classes(text: &str) -> Result<Classes, String> {
    match text {
        "random" => Ok(Classes::Random),
        "all" => Ok(Classes::RoundRobin),
        number => number
            .parse()
            .map(Classes::One)
            .map_err(|_| "expected `random`, `all`, or the number of a class from 0".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// Arguments that make no sense, a network that cannot be read or gives no images, and files that
/// cannot be written.
pub(crate) fn run(args: &SampleArgs) -> Result<u8, Failure> {
    if !args.beta.is_finite() {
        let message = format!("`--beta` expected a finite number, got {}", args.beta);
        return Err(Failure::usage(message, None));
    }
    let Some(end) = args.first.checked_add(args.n) else {
        let message =
            format!("`--first` expected at most {}, got {}", usize::MAX - args.n, args.first);
        return Err(Failure::usage(message, None));
    };
    let grid = args.grid.clone().unwrap_or_else(|| beside(&args.out));
    let mut steps = args.diffusion.begin()?;
    check_folder(&args.out)?;
    check_place(&grid)?;
    let network = args.diffusion.load(&steps)?;
    let request = Request {
        model: network.loaded.model.as_ref(),
        sampler: network.sampler(),
        images: args.first..end,
        seed: args.seed,
        classes: args.class.clone(),
        beta: args.beta,
        batch: network.batch(args.beta, args.n, &steps.talk)?,
        device: &network.device,
    };
    if let Some(other) = of_another_sample(&args.out, &request.images) {
        steps.talk.line(&format!(
            "warning: `{}` holds images of another sample too, `{other}` for instance",
            args.out.display()
        ));
    }
    let mut shown = Vec::new();
    let seconds = sampled(&mut steps, &request, &mut |first, pictures| {
        for (i, picture) in pictures.into_iter().enumerate() {
            write(&picture, &args.out.join(format!("{:06}.png", first + i)))?;
            if shown.len() < IN_GRID {
                shown.push(picture);
            }
        }
        Ok(())
    })?;
    say_refused(&network.loaded, &steps.talk);
    let side = request.model.image_size();
    write(&Picture::collect(&shown, &Grid::new(8).legible(side)), &grid)?;
    let n = args.n;
    let images = if n == 1 { "image" } else { "images" };
    let rate = n as f64 / seconds;
    steps.talk.note(&format!("{n} {images} in {seconds:.1} s, {rate:.2} a second"));
    print(&format!("{}\n{}\n", args.out.display(), grid.display()))?;
    Ok(DONE)
}

/// `DIR-grid.png`: in the folder it would be taken for an image of the sample.
fn beside(folder: &Path) -> PathBuf {
    // The present folder has a name elsewhere.
    let whole = std::path::absolute(folder).unwrap_or_default();
    let (folder, name) = match (folder.file_name(), whole.file_name()) {
        (Some(name), _) => (folder, name),
        (None, Some(name)) => (whole.as_path(), name),
        (None, None) => (folder, "samples".as_ref()),
    };
    let mut name = name.to_owned();
    name.push("-grid.png");
    folder.with_file_name(name)
}

/// An image in the folder that this sample will not write.
fn of_another_sample(folder: &Path, numbers: &std::ops::Range<usize>) -> Option<String> {
    let names = std::fs::read_dir(folder).ok()?.flatten();
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.into_iter().find(|name| {
        let number = name.strip_suffix(".png").filter(|number| number.len() >= 6);
        number.and_then(|number| number.parse().ok()).is_some_and(|n| !numbers.contains(&n))
    })
}

/// Samples images and hands them over as pictures, with the number of the first; seconds that it
/// took. A failure of `on_batch` comes back as it was.
pub(crate) fn sampled(
    steps: &mut Steps,
    request: &Request<'_>,
    on_batch: &mut dyn FnMut(usize, Vec<Picture>) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    // On its way through the sampler, which takes any error for the caller's.
    let mut failed = None;
    steps.begin("sample", request.evaluations());
    let outcome = sample(
        request,
        &mut || {
            steps.tick();
            Ok(())
        },
        &mut |samples| {
            let pictures = Picture::each(&samples.images, Range::Unit)?;
            on_batch(samples.first, pictures).map_err(|failure| {
                let message = failure.message.clone();
                failed = Some(failure);
                message.into()
            })
        },
    );
    let seconds = steps.end();
    match (outcome, failed) {
        (Ok(()), _) => Ok(seconds),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(refused(&error)),
    }
}

/// What the library says, with the remedy where there is one.
fn refused(error: &SampleError) -> Failure {
    let (code, hint) = match error {
        SampleError::Class { .. } => (USAGE, Some("`--class all` shows every class in turn")),
        SampleError::NoClasses { .. } => (USAGE, Some("leave `--class` out")),
        SampleError::NotFinite { .. } => {
            (SETUP, Some("are the weights whole, and is `--beta` not too large?"))
        }
        SampleError::OutOfMemory { fits, .. } => {
            return Failure::out_of_memory(chain(error), *fits);
        }
        _ => (UNFORESEEN, None),
    };
    Failure { message: chain(error), hint: hint.map(str::to_owned), code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_lies_beside_the_folder() {
        let check = |folder, grid| assert_eq!(beside(Path::new(folder)), Path::new(grid));
        check("samples", "samples-grid.png");
        check("a/b.c/", "a/b.c-grid.png");
        check("/tmp/x", "/tmp/x-grid.png");
        let here = std::env::current_dir().unwrap();
        let mut name = here.file_name().unwrap().to_owned();
        name.push("-grid.png");
        assert_eq!(beside(Path::new(".")), here.with_file_name(name));
    }

    #[test]
    fn images_of_another_sample_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let found = || of_another_sample(folder.path(), &(0..3));
        for name in ["000002.png", "notes.txt", "cat.png", "1.png"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(found(), None);
        std::fs::write(folder.path().join("000003.png"), "x").unwrap();
        assert_eq!(found().as_deref(), Some("000003.png"));
    }
}
