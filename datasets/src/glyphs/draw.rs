//! Draws characters: pose, brush, colours, background and noise, all from one generator.
//!
//! Everything is computed in `f64` with `libm`, so that an image has the same bytes on every
//! platform.

use libm::{cos, exp, sin};
use rand::{Rng, RngExt};

use super::strokes::{Glyph, Point};

/// Side of every image, in pixels.
pub(super) const SIDE: usize = 16;

/// An RGB image of [`SIDE`] by [`SIDE`] with values in `[0, 1]`.
#[derive(Clone)]
pub(super) struct Canvas {
    pub(super) pixels: Vec<[f64; 3]>,
}

impl Canvas {
    /// An image whose pixel at (x, y), both in `[0, 1]`, is `f(x, y)`.
    pub(super) fn from_fn(f: impl Fn(f64, f64) -> [f64; 3]) -> Self {
        let at = |i: usize| (i as f64 + 0.5) / SIDE as f64;
        let pixels = (0..SIDE * SIDE).map(|i| f(at(i % SIDE), at(i / SIDE))).collect();
        Self { pixels }
    }

    /// The image as bytes, row-major RGB.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let byte = |value: f64| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        self.pixels.iter().flatten().map(|&value| byte(value)).collect()
    }

    /// Adds independent noise to each value.
    pub(super) fn add_noise(&mut self, sigma: f64, rng: &mut impl Rng) {
        for value in self.pixels.iter_mut().flatten() {
            *value += sigma * normal(rng);
        }
    }
}

/// A number with mean 0 and variance 1: the sum of twelve uniform ones, less six.
pub(super) fn normal(rng: &mut impl Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

pub(super) fn between(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

pub(super) fn colour(rng: &mut impl Rng) -> [f64; 3] {
    [rng.random(), rng.random(), rng.random()]
}

pub(super) fn mix(a: [f64; 3], b: [f64; 3], t: f64) -> [f64; 3] {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// A colour that stands out from every colour of `others`.
fn contrasting(others: &[[f64; 3]], rng: &mut impl Rng) -> [f64; 3] {
    loop {
        let candidate = colour(rng);
        if others.iter().all(|&other| distance(candidate, other) > 0.55) {
            return candidate;
        }
    }
}

/// How a character lies on the canvas.
struct Pose {
    height: f64,
    width: f64,
    slant: f64,
    cos: f64,
    sin: f64,
    centre: Point,
    bend: [f64; 4],
}

impl Pose {
    fn random(rng: &mut impl Rng) -> Self {
        let height = between(rng, 0.56, 0.84);
        let angle = between(rng, -0.24, 0.24);
        let room = (1.0 - height) * 0.5;
        Self {
            height,
            width: height * between(rng, 0.55, 0.85),
            slant: between(rng, -0.25, 0.25),
            cos: cos(angle),
            sin: sin(angle),
            centre: (
                0.5 + between(rng, -0.12, 0.12),
                0.5 + between(rng, -room, room).clamp(-0.12, 0.12),
            ),
            bend: [
                between(rng, -0.05, 0.05),
                between(rng, 0.0, 6.3),
                between(rng, -0.05, 0.05),
                between(rng, 0.0, 6.3),
            ],
        }
    }

    /// From the unit square of the character to the unit square of the canvas.
    fn place(&self, (x, y): Point) -> Point {
        let [a, p, b, q] = self.bend;
        let (x, y) = (x + a * sin(4.0 * y + p), y + b * sin(4.0 * x + q));
        let (x, y) = (x - 0.5 - self.slant * (y - 0.5), y - 0.5);
        let (x, y) = (x * self.width, y * self.height);
        (self.centre.0 + x * self.cos - y * self.sin, self.centre.1 + x * self.sin + y * self.cos)
    }
}

/// Distance from a point to a segment.
fn to_segment((px, py): Point, (ax, ay): Point, (bx, by): Point) -> f64 {
    let (dx, dy) = (bx - ax, by - ay);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { ((px - ax) * dx + (py - ay) * dy) / length } else { 0.0 };
    let t = t.clamp(0.0, 1.0);
    let (dx, dy) = (px - ax - t * dx, py - ay - t * dy);
    (dx * dx + dy * dy).sqrt()
}

/// Distance from each pixel to the strokes, in units of the canvas.
fn stroke_distance(chains: &[Vec<Point>]) -> Vec<f64> {
    let at = |i: usize| (i as f64 + 0.5) / SIDE as f64;
    (0..SIDE * SIDE)
        .map(|i| {
            let pixel = (at(i % SIDE), at(i / SIDE));
            chains
                .iter()
                .flat_map(|chain| chain.windows(2))
                .map(|pair| to_segment(pixel, pair[0], pair[1]))
                .fold(f64::INFINITY, f64::min)
        })
        .collect()
}

/// How much of a pixel at `distance` a brush of this radius covers.
fn coverage(distance: f64, radius: f64) -> f64 {
    ((radius - distance) * SIDE as f64 + 0.5).clamp(0.0, 1.0)
}

fn background(rng: &mut impl Rng) -> (Canvas, Vec<[f64; 3]>) {
    let a = colour(rng);
    // A second colour that stays close, so that the character can stand out from both.
    let b = mix(a, colour(rng), between(rng, 0.15, 0.5));
    let (angle, phase) = (between(rng, 0.0, 6.3), between(rng, 0.0, 6.3));
    let (dx, dy) = (cos(angle), sin(angle));
    let canvas = match rng.random_range(0..10) {
        0..4 => Canvas::from_fn(|_, _| a),
        4..7 => Canvas::from_fn(|x, y| {
            mix(a, b, (0.5 + 0.7 * ((x - 0.5) * dx + (y - 0.5) * dy)).clamp(0.0, 1.0))
        }),
        7..9 => {
            let (cx, cy, r) = (rng.random::<f64>(), rng.random::<f64>(), between(rng, 0.2, 0.5));
            Canvas::from_fn(|x, y| {
                let squared = (x - cx) * (x - cx) + (y - cy) * (y - cy);
                mix(a, b, exp(-squared / (r * r)))
            })
        }
        _ => {
            let frequency = between(rng, 8.0, 22.0);
            Canvas::from_fn(|x, y| {
                mix(a, b, 0.5 + 0.5 * sin(frequency * (x * dx + y * dy) + phase))
            })
        }
    };
    (canvas, vec![a, b])
}

/// A character in a random pose, brush and colour, on a random background, with a little noise.
pub(super) fn character(glyph: &Glyph, rng: &mut impl Rng) -> Canvas {
    let (mut canvas, under) = background(rng);
    let shape = glyph.shapes[rng.random_range(0..glyph.shapes.len())];
    let pose = Pose::random(rng);
    let chains: Vec<Vec<Point>> = shape
        .iter()
        .map(|stroke| stroke.points().into_iter().map(|point| pose.place(point)).collect())
        .collect();
    let radius = between(rng, 0.028, 0.07);
    let ink = contrasting(&under, rng);
    let distance = stroke_distance(&chains);
    if rng.random_range(0..6) == 0 {
        // A darker rim around the strokes.
        let rim = mix(ink, [0.0; 3], 0.8);
        for (pixel, &d) in canvas.pixels.iter_mut().zip(&distance) {
            *pixel = mix(*pixel, rim, 0.8 * coverage(d, radius + 0.05));
        }
    }
    for (pixel, &d) in canvas.pixels.iter_mut().zip(&distance) {
        *pixel = mix(*pixel, ink, coverage(d, radius));
    }
    let sigma = between(rng, 0.0, 0.06);
    canvas.add_noise(sigma, rng);
    canvas
}
