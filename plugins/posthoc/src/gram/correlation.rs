//! The correlation of each channel with all channels, for each power.

use crate::numeric::moments::single;

/// The greatest power, which is the paper's.
pub(super) const MOST: u32 = 10;

/// Appends the correlation of each channel with all channels, power by power; `false` for a map that
/// is not finite.
pub(super) fn correlate(map: &[f32], channels: usize, powers: &[u32], out: &mut Vec<f32>) -> bool {
    // Without their signs, numbers are in the order of their bits, and those that are none stand last.
    let size = map.iter().map(|x| x.to_bits() & !(1 << 31)).max().map_or(0.0, f32::from_bits);
    if !size.is_finite() {
        return false;
    }
    // Powers of values up to 1 neither overflow nor vanish together.
    let size = f64::from(size);
    let first = out.len();
    out.resize(first + powers.len() * channels, 0.0);
    if size > 0.0 {
        let greatest = powers.iter().copied().max().unwrap_or(0);
        let out = &mut out[first..];
        // Compiled for the vectors that the machine has, and for each number of powers.
        pulp::Arch::new().dispatch(|| match greatest {
            1 => correlate_up_to::<1>(map, channels, powers, size, out),
            2 => correlate_up_to::<2>(map, channels, powers, size, out),
            3 => correlate_up_to::<3>(map, channels, powers, size, out),
            4 => correlate_up_to::<4>(map, channels, powers, size, out),
            5 => correlate_up_to::<5>(map, channels, powers, size, out),
            _ => correlate_up_to::<{ MOST as usize }>(map, channels, powers, size, out),
        });
    }
    true
}

/// Pixels that are worked on together.
const LANES: usize = 8;

/// The powers of some pixels, from the first on.
type Powers<const M: usize> = [[f64; LANES]; M];

/// The correlations of a map that is not all zeros, in two passes over it: the sum of all channels for
/// each pixel and power, then its product with each channel.
#[inline(always)]
fn correlate_up_to<const M: usize>(
    map: &[f32],
    channels: usize,
    powers: &[u32],
    size: f64,
    out: &mut [f32],
) {
    let pixels = map.len() / channels;
    let mut sums: Vec<Powers<M>> = vec![[[0.0; LANES]; M]; pixels.div_ceil(LANES)];
    for row in map.chunks_exact(pixels) {
        let (whole, rest) = row.as_chunks::<LANES>();
        for (sums, xs) in sums.iter_mut().zip(whole) {
            add_powers(xs, size, sums);
        }
        if !rest.is_empty() {
            add_powers(&padded(rest), size, &mut sums[whole.len()]);
        }
    }
    for (channel, row) in map.chunks_exact(pixels).enumerate() {
        let mut products: Powers<M> = [[0.0; LANES]; M];
        let (whole, rest) = row.as_chunks::<LANES>();
        for (sums, xs) in sums.iter().zip(whole) {
            add_products(xs, size, sums, &mut products);
        }
        if !rest.is_empty() {
            add_products(&padded(rest), size, &sums[whole.len()], &mut products);
        }
        for (nth, &power) in powers.iter().enumerate() {
            let g: f64 = products[power as usize - 1].iter().sum();
            // The map was divided by its size, which the correlation holds twice.
            let root = g.signum() * g.abs().powf(1.0 / f64::from(power)) * size * size;
            out[nth * channels + channel] = single(root);
        }
    }
}

/// The last pixels of a row, and zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut xs = [0.0; LANES];
    xs[..rest.len()].copy_from_slice(rest);
    xs
}

/// `sums += (xs / size)^p` for each power.
#[inline(always)]
fn add_powers<const M: usize>(xs: &[f32; LANES], size: f64, sums: &mut Powers<M>) {
    let scale = 1.0 / size;
    for lane in 0..LANES {
        let x = f64::from(xs[lane]) * scale;
        let mut power = x;
        for sums in sums.iter_mut() {
            sums[lane] += power;
            power *= x;
        }
    }
}

/// `products += (xs / size)^p * sums` for each power.
#[inline(always)]
fn add_products<const M: usize>(
    xs: &[f32; LANES],
    size: f64,
    sums: &Powers<M>,
    products: &mut Powers<M>,
) {
    let scale = 1.0 / size;
    for lane in 0..LANES {
        let x = f64::from(xs[lane]) * scale;
        let mut power = x;
        for (products, sums) in products.iter_mut().zip(sums) {
            products[lane] += power * sums[lane];
            power *= x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::random::Random;

    fn correlations(map: &[f32], channels: usize, powers: &[u32]) -> Vec<f32> {
        let mut out = Vec::new();
        assert!(correlate(map, channels, powers, &mut out));
        out
    }

    #[test]
    fn row_sums_are_those_of_the_whole_gram_matrix() {
        let (channels, pixels) = (5, 13);
        let mut random = Random::new(3);
        let map: Vec<f32> =
            (0..channels * pixels).map(|_| (random.unit() * 8.0 - 4.0) as f32).collect();
        let powers = [1, 5, 2, 3];
        let ours = correlations(&map, channels, &powers);
        let at = |i: usize, k: usize, p: u32| f64::from(map[i * pixels + k]).powi(p as i32);
        let mut expected = Vec::new();
        for p in powers {
            for i in 0..channels {
                let entry = |j: usize| (0..pixels).map(|k| at(i, k, p) * at(j, k, p)).sum::<f64>();
                let g: f64 = (0..channels).map(entry).sum();
                expected.push(g.signum() * g.abs().powf(1.0 / f64::from(p)));
            }
        }
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!(
                (f64::from(*ours) - expected).abs() < 1e-5 * expected.abs(),
                "{ours} {expected}"
            );
        }
    }

    #[test]
    fn great_powers_of_extreme_maps_stay_finite() {
        for size in [f32::MAX, 1e-30, f32::MIN_POSITIVE] {
            let row = correlations(&[size, -size, size / 2.0, size], 2, &[1, 5, MOST]);
            assert!(row.iter().all(|g| g.is_finite()), "{size}: {row:?}");
        }
        assert_eq!(correlations(&[0.0; 6], 3, &[1, 2]), [0.0; 6]);
        assert!(!correlate(&[1.0, f32::NAN], 1, &[1], &mut Vec::new()));
    }
}
