//! Covariate shift: what happens to a digit between the pen and the sensor.

use rand::{Rng, RngExt};

use super::draw::{Canvas, SIDE, between, mix};

/// Number of kinds of corruption.
pub(super) const N_CORRUPTIONS: usize = 6;

/// Corrupts an image: noise, blur, low contrast, coarse pixels, darkness, or an occlusion.
pub(super) fn corrupt(mut canvas: Canvas, kind: usize, rng: &mut impl Rng) -> Canvas {
    match kind % N_CORRUPTIONS {
        0 => canvas.add_noise(between(rng, 0.1, 0.2), rng),
        1 => canvas = blur(&canvas),
        2 => {
            let contrast = between(rng, 0.3, 0.5);
            map(&mut canvas, |pixel| mix([0.5; 3], pixel, contrast));
        }
        3 => canvas = pixelate(&canvas),
        4 => {
            let light = between(rng, 0.3, 0.5);
            map(&mut canvas, |pixel| mix([0.0; 3], pixel, light));
        }
        _ => {
            let (x0, y0) = (rng.random_range(0..SIDE - 4), rng.random_range(0..SIDE - 4));
            for y in y0..y0 + 4 {
                canvas.pixels[y * SIDE + x0..][..4].fill([0.5; 3]);
            }
        }
    }
    canvas
}

fn map(canvas: &mut Canvas, f: impl Fn([f64; 3]) -> [f64; 3]) {
    for pixel in &mut canvas.pixels {
        *pixel = f(*pixel);
    }
}

/// The mean over a 3x3 window, the border repeated.
fn blur(canvas: &Canvas) -> Canvas {
    let last = SIDE - 1;
    let pixels = (0..SIDE * SIDE)
        .map(|i| {
            let (x, y) = (i % SIDE, i / SIDE);
            let mut sum = [0.0; 3];
            for yy in [y.saturating_sub(1), y, (y + 1).min(last)] {
                for xx in [x.saturating_sub(1), x, (x + 1).min(last)] {
                    for (sum, value) in sum.iter_mut().zip(canvas.pixels[yy * SIDE + xx]) {
                        *sum += value / 9.0;
                    }
                }
            }
            sum
        })
        .collect();
    Canvas { pixels }
}

/// Every 2x2 block becomes its mean.
fn pixelate(canvas: &Canvas) -> Canvas {
    let pixels = (0..SIDE * SIDE)
        .map(|i| {
            let (x, y) = (i % SIDE / 2 * 2, i / SIDE / 2 * 2);
            let block =
                [y * SIDE + x, y * SIDE + x + 1, (y + 1) * SIDE + x, (y + 1) * SIDE + x + 1];
            [0, 1, 2].map(|c| block.iter().map(|&at| canvas.pixels[at][c]).sum::<f64>() / 4.0)
        })
        .collect();
    Canvas { pixels }
}
