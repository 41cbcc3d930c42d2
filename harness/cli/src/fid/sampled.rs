//! A sample of a diffusion network as a set, measured as it is made.

use oodbench_diffusion::fid::Moments;
use oodbench_diffusion::picture::Picture;
use oodbench_diffusion::sample::{Classes, Request};
use oodbench_nn::inception::{N_FEATURES, Pixels};

use super::FidArgs;
use super::set::Network;
use crate::diffusion::{Steps, say_refused};
use crate::exit::Failure;

/// The features of `count` images, rounded to 8 bits as `oodbench sample` writes them: the
/// distance is that of its PNG files.
pub(super) fn sampled(
    inception: &Network,
    args: &FidArgs,
    count: usize,
    steps: &mut Steps,
) -> Result<Moments, Failure> {
    if !args.beta.is_finite() {
        let message = format!("`--beta` expected a finite number, got {}", args.beta);
        return Err(Failure::usage(message, None));
    }
    let network = args.diffusion.load(steps)?;
    let request = Request {
        model: network.loaded.model.as_ref(),
        sampler: network.sampler(),
        images: 0..count,
        seed: args.seed,
        classes: Classes::Random,
        beta: args.beta,
        batch: network.batch(args.beta, count, &steps.talk)?,
        device: &network.device,
    };
    let mut moments = Moments::new(N_FEATURES);
    let seconds = crate::sample::sampled(steps, &request, &mut |_, pictures| {
        let pixels: Vec<Pixels<'_>> = pictures.iter().map(pixels).collect();
        inception.gather(&pixels, &mut moments)
    })?;
    say_refused(&network.loaded, &steps.talk);
    let speed = count as f64 / seconds;
    steps.talk.note(&format!("{count} samples in {seconds:.1} s, {speed:.2} a second"));
    Ok(moments)
}

fn pixels(picture: &Picture) -> Pixels<'_> {
    Pixels { width: picture.width(), height: picture.height(), rgb: picture.pixels() }
}
