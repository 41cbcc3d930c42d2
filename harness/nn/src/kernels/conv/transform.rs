//! The one-dimensional transforms of F(4, 3), Winograd's minimal filtering of four outputs by
//! three taps with six products.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016. They interpolate at
//! 0, ±1, ±2 and infinity. Here it is at 0, ±√½, ±√2 and infinity, whose powers stay closer to one,
//! so that less is lost to rounding. With `a² = 1/2` and `b² = 2`, for a point `p` of these and
//! `M(x) = x (x² - a²) (x² - b²)`:
//!
//! - of the input, the coefficients of `M(x) / (x - p)`, and of `M` itself for infinity;
//! - of the taps, `(1, p, p²) / M'(p)`, and `(0, 0, 1)`;
//! - of the products, `(1, p, p², p³)`, and `(0, 0, 0, 1)`.

/// Outputs of a tile, in one direction.
pub(super) const OUT: usize = 4;
/// Inputs of a tile, and products, in one direction.
pub(super) const IN: usize = 6;
/// Products of a tile in both directions.
pub(super) const POINTS: usize = IN * IN;
/// The only kernel that it is for.
pub(super) const TAPS: usize = 3;

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const A2: f32 = 0.5;
const B2: f32 = 2.0;
/// `M'(±a)` and `M'(±b)`; `M'(0)` is one.
const SLOPE_A: f32 = -1.5;
const SLOPE_B: f32 = 6.0;

/// Six inputs to the six factors of the products.
#[inline(always)]
pub(super) fn input([d0, d1, d2, d3, d4, d5]: [f32; IN]) -> [f32; IN] {
    let (even_a, odd_a) = (d4 - B2 * d2, A * (d3 - B2 * d1));
    let (even_b, odd_b) = (d4 - A2 * d2, B * (d3 - A2 * d1));
    [
        d0 + d4 - (A2 + B2) * d2,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        d1 + d5 - (A2 + B2) * d3,
    ]
}

/// Three taps to the other factors.
#[inline(always)]
pub(super) fn taps([g0, g1, g2]: [f32; TAPS]) -> [f32; IN] {
    let (even_a, odd_a) = ((g0 + A2 * g2) * (1.0 / SLOPE_A), A / SLOPE_A * g1);
    let (even_b, odd_b) = ((g0 + B2 * g2) * (1.0 / SLOPE_B), B / SLOPE_B * g1);
    [g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2]
}

/// Six products to the four outputs.
#[inline(always)]
pub(super) fn output([m0, m1, m2, m3, m4, m5]: [f32; IN]) -> [f32; OUT] {
    let (sum_a, difference_a) = (m1 + m2, A * (m1 - m2));
    let (sum_b, difference_b) = (m3 + m4, B * (m3 - m4));
    [
        m0 + sum_a + sum_b,
        difference_a + difference_b,
        A2 * sum_a + B2 * sum_b,
        A2 * difference_a + B2 * difference_b + m5,
    ]
}

/// The transpose of [`output`]: gradients of four outputs to those of the six products.
#[inline(always)]
pub(super) fn output_gradient([y0, y1, y2, y3]: [f32; OUT]) -> [f32; IN] {
    let (even_a, odd_a) = (y0 + A2 * y2, A * (y1 + A2 * y3));
    let (even_b, odd_b) = (y0 + B2 * y2, B * (y1 + B2 * y3));
    [y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3]
}

/// The transpose of [`taps`]: gradients of six factors to those of the three taps.
#[inline(always)]
pub(super) fn taps_gradient([u0, u1, u2, u3, u4, u5]: [f32; IN]) -> [f32; TAPS] {
    let (sum_a, difference_a) = ((u1 + u2) * (1.0 / SLOPE_A), A / SLOPE_A * (u1 - u2));
    let (sum_b, difference_b) = ((u3 + u4) * (1.0 / SLOPE_B), B / SLOPE_B * (u3 - u4));
    [u0 + sum_a + sum_b, difference_a + difference_b, A2 * sum_a + B2 * sum_b + u5]
}

/// A transform in both directions of many squares at once, first along `i`, then along `j`, of
/// `from(i, j)[lane]`. Hands the lanes of each point to `take`, row by row.
#[expect(clippy::needless_range_loop, reason = "several arrays at one place, lane by lane")]
#[inline(always)]
pub(super) fn both_directions<'a, const M: usize, const N: usize, const L: usize>(
    from: impl Fn(usize, usize) -> &'a [f32; L],
    one: impl Fn([f32; M]) -> [f32; N],
    mut take: impl FnMut(usize, &[f32; L]),
) {
    let mut half = [[[0.0; L]; M]; N];
    for j in 0..M {
        let column: [&[f32; L]; M] = std::array::from_fn(|i| from(i, j));
        for lane in 0..L {
            let values = one(std::array::from_fn(|i| column[i][lane]));
            for i in 0..N {
                half[i][j][lane] = values[i];
            }
        }
    }
    for (i, half) in half.iter().enumerate() {
        let mut row = [[0.0; L]; N];
        for lane in 0..L {
            let values = one(std::array::from_fn(|j| half[j][lane]));
            for j in 0..N {
                row[j][lane] = values[j];
            }
        }
        for (j, lanes) in row.iter().enumerate() {
            take(i * N + j, lanes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_products_are_four_outputs_of_a_filter() {
        let d: [f32; IN] = [0.3, -1.2, 0.7, 2.0, -0.4, 1.1];
        let g: [f32; TAPS] = [0.5, -0.8, 0.25];
        let (v, u) = (input(d), taps(g));
        let ours = output(std::array::from_fn(|p| u[p] * v[p]));
        for (i, ours) in ours.into_iter().enumerate() {
            let expected: f32 = (0..TAPS).map(|k| g[k] * d[i + k]).sum();
            assert!((ours - expected).abs() < 1e-6, "output {i}: expected {expected}, got {ours}");
        }
    }

    /// `<y, f(x)> = <f'(y), x>`
    #[test]
    fn gradients_are_transposes() {
        let m: [f32; IN] = [0.1, 0.9, -0.6, 0.4, 1.3, -0.2];
        let y: [f32; OUT] = [1.0, -0.5, 0.75, 0.2];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert!((dot(&y, &output(m)) - dot(&output_gradient(y), &m)).abs() < 1e-5);
        let g: [f32; TAPS] = [0.5, -0.8, 0.25];
        assert!((dot(&m, &taps(g)) - dot(&taps_gradient(m), &g)).abs() < 1e-6);
    }
}
