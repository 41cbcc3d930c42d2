//! Far-OOD: textures without characters, and noise.

use libm::{cos, floor, sin};
use rand::{Rng, RngExt};

use super::draw::{Canvas, SIDE, between, colour, mix, normal};

/// Number of families of textures.
pub(super) const N_TEXTURES: usize = 6;

/// A texture of the given family: waves, checks, dots, cells, clouds, bricks.
pub(super) fn texture(family: usize, rng: &mut impl Rng) -> Canvas {
    let (a, b) = (colour(rng), colour(rng));
    let angle = between(rng, 0.0, 6.3);
    let (dx, dy) = (cos(angle), sin(angle));
    let frequency = between(rng, 2.0, 6.0);
    let phase = between(rng, 0.0, 6.3);
    let turn = |x: f64, y: f64| (x * dx + y * dy, y * dx - x * dy);
    let mut canvas = match family % N_TEXTURES {
        0 => Canvas::from_fn(|x, y| {
            let (u, v) = turn(x, y);
            mix(a, b, 0.5 + 0.5 * sin(6.3 * frequency * u + 2.0 * sin(4.0 * v) + phase))
        }),
        1 => Canvas::from_fn(|x, y| {
            let (u, v) = turn(x + 1.0, y + 1.0);
            let even = (floor(u * frequency) + floor(v * frequency)).rem_euclid(2.0) < 0.5;
            if even { a } else { b }
        }),
        2 => Canvas::from_fn(|x, y| {
            let (u, v) = turn(x, y);
            let fraction = |w: f64| w * frequency - floor(w * frequency) - 0.5;
            let (u, v) = (fraction(u), fraction(v));
            if u * u + v * v < 0.09 { a } else { b }
        }),
        3 => {
            let seeds: Vec<(f64, f64, [f64; 3])> = (0..4 + (frequency * 1.5) as usize)
                .map(|_| (rng.random(), rng.random(), colour(rng)))
                .collect();
            Canvas::from_fn(|x, y| {
                let squared =
                    |&(sx, sy, _): &(f64, f64, [f64; 3])| (x - sx) * (x - sx) + (y - sy) * (y - sy);
                let nearest = seeds.iter().min_by(|l, r| squared(l).total_cmp(&squared(r)));
                nearest.map_or(a, |&(_, _, colour)| colour)
            })
        }
        4 => clouds(a, b, rng),
        _ => Canvas::from_fn(|x, y| {
            let row = floor(y * frequency);
            let shifted = x * frequency * 0.5 + 0.5 * row.rem_euclid(2.0);
            let mortar = y * frequency - row < 0.22 || shifted - floor(shifted) < 0.12;
            if mortar { a } else { b }
        }),
    };
    canvas.add_noise(between(rng, 0.0, 0.06), rng);
    canvas
}

/// Smooth random patches: coarse values, interpolated.
fn clouds(a: [f64; 3], b: [f64; 3], rng: &mut impl Rng) -> Canvas {
    const CELLS: usize = 5;
    let grid: Vec<f64> = (0..CELLS * CELLS).map(|_| rng.random()).collect();
    Canvas::from_fn(|x, y| {
        let (x, y) = (x * (CELLS - 1) as f64, y * (CELLS - 1) as f64);
        let (i, j) = ((x as usize).min(CELLS - 2), (y as usize).min(CELLS - 2));
        let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
        let (u, v) = (smooth(x - i as f64), smooth(y - j as f64));
        let row = |j: usize| grid[j * CELLS + i] * (1.0 - u) + grid[j * CELLS + i + 1] * u;
        mix(a, b, row(j) * (1.0 - v) + row(j + 1) * v)
    })
}

/// Number of families of noise.
pub(super) const N_NOISES: usize = 3;

/// Noise of the given family: Gaussian, uniform, or blotched.
pub(super) fn noise(family: usize, rng: &mut impl Rng) -> Canvas {
    let sigma = between(rng, 0.15, 0.5);
    let mut draw = |coarse: usize| -> Vec<[f64; 3]> {
        let side = SIDE / coarse;
        let cells: Vec<[f64; 3]> = (0..side * side)
            .map(|_| match family % N_NOISES {
                0 => [0, 1, 2].map(|_| 0.5 + sigma * normal(rng)),
                1 => colour(rng),
                _ => [0.5 + sigma * normal(rng); 3],
            })
            .collect();
        (0..SIDE * SIDE).map(|i| cells[(i / SIDE) / coarse * side + (i % SIDE) / coarse]).collect()
    };
    let coarse = if family % N_NOISES == 2 { 2 } else { 1 };
    Canvas { pixels: draw(coarse) }
}
