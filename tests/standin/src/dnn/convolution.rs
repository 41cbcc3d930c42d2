//! Convolutions and their two gradients, each as products of matrices that are gathered.

use super::tensor::{Number, Tensor};
use super::{BAD_PARAM, NOT_SUPPORTED, SHAPE_MISMATCH};
use crate::api::{Outcome, refusal};
use crate::blas::product_f32;
use crate::half::to_tf32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    BackwardData,
    BackwardFilter,
}

/// How the filter moves: two numbers each, for rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Movement {
    pub(super) before: [usize; 2],
    pub(super) after: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    /// Whether the filter is turned round, as mathematics has it.
    pub(super) flipped: bool,
}

/// A convolution: what it reads and writes, without addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Problem {
    pub(super) pass: Pass,
    pub(super) x: Tensor,
    pub(super) w: Tensor,
    pub(super) y: Tensor,
    pub(super) movement: Movement,
    /// Alpha and beta.
    pub(super) scales: [f32; 2],
}

/// Addresses of the three tensors, gradients in their places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) x: usize,
    pub(super) w: usize,
    pub(super) y: usize,
}

impl Problem {
    fn groups(&self) -> usize {
        self.x.dims[1] / self.w.dims[1]
    }

    /// # Errors
    /// Shapes or types that do not go together.
    pub(super) fn check(&self, groups: Option<usize>) -> Outcome {
        let (x, w, y) = (&self.x, &self.w, &self.y);
        if x.number != w.number || x.number != y.number {
            let line = format!("tensors of {:?}, {:?} and {:?}", x.number, w.number, y.number);
            return Err(refusal(NOT_SUPPORTED, line));
        }
        if x.number == Number::F64 {
            return Err(refusal(NOT_SUPPORTED, "convolutions of doubles"));
        }
        let channels_fit = x.dims[1].is_multiple_of(w.dims[1])
            && w.dims[0].is_multiple_of(self.groups())
            && groups.is_none_or(|groups| groups == self.groups());
        if !channels_fit {
            let line = format!("{} channels, filters of {}", x.dims[1], w.dims[1]);
            return Err(refusal(SHAPE_MISMATCH, line));
        }
        let movement = &self.movement;
        if movement.strides.contains(&0) || movement.dilations.contains(&0) {
            return Err(refusal(BAD_PARAM, "a stride or dilation is 0"));
        }
        let mut expected = [x.dims[0], w.dims[0], 0, 0];
        for at in 0..2 {
            let padded = x.dims[at + 2] + movement.before[at] + movement.after[at];
            let reach = movement.dilations[at] * (w.dims[at + 2] - 1) + 1;
            if padded < reach {
                return Err(refusal(SHAPE_MISMATCH, "the filter is larger than the padded input"));
            }
            expected[at + 2] = (padded - reach) / movement.strides[at] + 1;
        }
        if y.dims != expected {
            let line = format!("output expected {expected:?}, got {:?}", y.dims);
            return Err(refusal(SHAPE_MISMATCH, line));
        }
        Ok(())
    }

    /// Where a tap of the filter lies in the filter.
    fn tap(&self, r: usize, s: usize) -> usize {
        let [_, _, rows, columns] = self.w.dims;
        let (r, s) = if self.movement.flipped { (rows - 1 - r, columns - 1 - s) } else { (r, s) };
        r * self.w.strides[2] + s * self.w.strides[3]
    }

    /// Computes on checked addresses. `tf32` rounds what is multiplied.
    ///
    /// # Errors
    /// A tensor is not inside an allocation.
    pub(super) fn run(&self, at: Addresses, tf32: bool) -> Outcome {
        self.x.check("tensor x", at.x)?;
        self.w.check("tensor w", at.w)?;
        self.y.check("tensor y", at.y)?;
        let round = tf32 && self.x.number == Number::F32;
        for group in 0..self.groups() {
            match self.pass {
                Pass::Forward => self.forward(at, group, round),
                Pass::BackwardData => self.backward_data(at, group, round),
                Pass::BackwardFilter => self.backward_filter(at, group, round),
            }
        }
        Ok(())
    }

    /// For each channel, row and column of a filter: where its input channel begins, how far it
    /// reaches down and right, and where it lies in the filter.
    fn taps(
        &self,
        channels: usize,
        first: usize,
        x_channel: usize,
        w_channel: usize,
    ) -> Vec<[usize; 4]> {
        let [_, _, rows, columns] = self.w.dims;
        let mut taps = Vec::with_capacity(channels * rows * columns);
        for channel in 0..channels {
            for r in 0..rows {
                for s in 0..columns {
                    taps.push([
                        (first + channel) * x_channel,
                        r * self.movement.dilations[0],
                        s * self.movement.dilations[1],
                        channel * w_channel + self.tap(r, s),
                    ]);
                }
            }
        }
        taps
    }

    /// The input that a tap of an output pixel reads, or 0 in the padding.
    fn input(&self, start: usize, image: usize, [oy, ox]: [usize; 2], tap: &[usize; 4]) -> f32 {
        let movement = &self.movement;
        let y = (oy * movement.strides[0] + tap[1]).wrapping_sub(movement.before[0]);
        let x = (ox * movement.strides[1] + tap[2]).wrapping_sub(movement.before[1]);
        if y >= self.x.dims[2] || x >= self.x.dims[3] {
            return 0.0;
        }
        let [n, _, h, w] = self.x.strides;
        self.x.read(start, image * n + tap[0] + y * h + x * w)
    }

    fn forward(&self, at: Addresses, group: usize, round: bool) {
        let rounded = |value: f32| if round { to_tf32(value) } else { value };
        let [_, channels, _, _] = self.w.dims;
        let filters = self.w.dims[0] / self.groups();
        let taps = self.taps(channels, group * channels, self.x.strides[1], self.w.strides[1]);
        let [_, _, height, width] = self.y.dims;
        let pixel = |row: usize| [row / width, row % width];
        for image in 0..self.x.dims[0] {
            product_f32(
                height * width,
                filters,
                taps.len(),
                |row, p| rounded(self.input(at.x, image, pixel(row), &taps[p])),
                |p, k| {
                    let filter = (group * filters + k) * self.w.strides[0];
                    rounded(self.w.read(at.w, filter + taps[p][3]))
                },
                |row, k, sum| {
                    let [y, x] = pixel(row);
                    let [sn, sc, sh, sw] = self.y.strides;
                    let to = image * sn + (group * filters + k) * sc + y * sh + x * sw;
                    self.y.blend(at.y, to, sum, self.scales);
                },
            );
        }
    }

    fn backward_data(&self, at: Addresses, group: usize, round: bool) {
        let rounded = |value: f32| if round { to_tf32(value) } else { value };
        let [_, channels, _, _] = self.w.dims;
        let filters = self.w.dims[0] / self.groups();
        // Here the sum goes over filters: their outputs are read, their own place is by filter.
        let taps = self.taps(filters, group * filters, self.y.strides[1], self.w.strides[0]);
        let [_, _, height, width] = self.x.dims;
        let pixel = |row: usize| [row / width, row % width];
        let first = group * filters * self.w.strides[0];
        for image in 0..self.x.dims[0] {
            product_f32(
                height * width,
                channels,
                taps.len(),
                |row, p| rounded(self.output(at.y, image, pixel(row), &taps[p])),
                |p, c| rounded(self.w.read(at.w, first + taps[p][3] + c * self.w.strides[1])),
                |row, c, sum| {
                    let [y, x] = pixel(row);
                    let [sn, sc, sh, sw] = self.x.strides;
                    let to = image * sn + (group * channels + c) * sc + y * sh + x * sw;
                    self.x.blend(at.x, to, sum, self.scales);
                },
            );
        }
    }

    /// The output whose tap reads an input pixel, or 0 where there is none.
    fn output(&self, start: usize, image: usize, pixel: [usize; 2], tap: &[usize; 4]) -> f32 {
        let mut place = [0; 2];
        for at in 0..2 {
            let reached = pixel[at] + self.movement.before[at];
            let stride = self.movement.strides[at];
            if reached < tap[at + 1] || !(reached - tap[at + 1]).is_multiple_of(stride) {
                return 0.0;
            }
            place[at] = (reached - tap[at + 1]) / stride;
            if place[at] >= self.y.dims[at + 2] {
                return 0.0;
            }
        }
        let [n, _, h, w] = self.y.strides;
        self.y.read(start, image * n + tap[0] + place[0] * h + place[1] * w)
    }

    fn backward_filter(&self, at: Addresses, group: usize, round: bool) {
        let rounded = |value: f32| if round { to_tf32(value) } else { value };
        let [_, channels, _, _] = self.w.dims;
        let filters = self.w.dims[0] / self.groups();
        let taps = self.taps(channels, group * channels, self.x.strides[1], self.w.strides[1]);
        let [images, _, height, width] = self.y.dims;
        let pixel = |p: usize| [p / width, p % width];
        let mut sums = vec![0.0_f32; filters * taps.len()];
        for image in 0..images {
            product_f32(
                filters,
                taps.len(),
                height * width,
                |k, p| {
                    let [y, x] = pixel(p);
                    let [sn, sc, sh, sw] = self.y.strides;
                    let from = image * sn + (group * filters + k) * sc + y * sh + x * sw;
                    rounded(self.y.read(at.y, from))
                },
                |p, tap| rounded(self.input(at.x, image, pixel(p), &taps[tap])),
                |k, tap, sum| sums[k * taps.len() + tap] += sum,
            );
        }
        for (position, sum) in sums.iter().enumerate() {
            let (k, tap) = (position / taps.len(), position % taps.len());
            let to = (group * filters + k) * self.w.strides[0] + taps[tap][3];
            self.w.blend(at.w, to, *sum, self.scales);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory;

    /// A tensor on the "device", channels first or last.
    fn place(dims: [usize; 4], last: bool, values: impl Fn(usize) -> f32) -> (Tensor, usize) {
        let [_, c, h, w] = dims;
        let strides = if last { [c * h * w, 1, w * c, c] } else { [c * h * w, h * w, w, 1] };
        let as_i64 = |all: [usize; 4]| all.map(|one| one as i64);
        let tensor = Tensor::new(Number::F32, &as_i64(dims), &as_i64(strides)).unwrap();
        let start = memory().allocate(tensor.span(), crate::driver::Kind::Device).unwrap();
        for at in 0..dims.iter().product::<usize>() {
            tensor.blend(start, at, values(at), [1.0, 0.0]);
        }
        (tensor, start)
    }

    fn all(dims: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
        let [a, b, c, d] = dims;
        (0..a * b * c * d).map(move |at| [at / (b * c * d), at / (c * d) % b, at / d % c, at % d])
    }

    fn offset(tensor: &Tensor, place: [usize; 4]) -> usize {
        place.iter().zip(tensor.strides).map(|(at, stride)| at * stride).sum()
    }

    /// `sum over all outputs of y(out) * z(out)`, and its gradients, by the definition.
    #[test]
    fn the_passes_are_transposes_of_each_other() {
        for (groups, stride, dilation, padding, last, flipped) in [
            (1, 1, 1, [1, 1], true, false),
            (2, 2, 1, [0, 1], false, false),
            (1, 2, 2, [2, 2], true, true),
            (4, 1, 1, [0, 0], true, false),
        ] {
            let movement = Movement {
                before: [padding[0]; 2],
                after: [padding[1]; 2],
                strides: [stride; 2],
                dilations: [dilation; 2],
                flipped,
            };
            let extent =
                |input: usize| (input + padding[0] + padding[1] - 2 * dilation - 1) / stride + 1;
            let number = |at: usize| (at * 37 % 19) as f32 / 19.0 - 0.4;
            let (x, x_at) = place([2, 4, 7, 6], last, number);
            let (w, w_at) = place([8, 4 / groups, 3, 3], last, |at| number(at + 5));
            let (y, y_at) = place([2, 8, extent(7), extent(6)], last, |_| f32::NAN);
            let base = Problem { pass: Pass::Forward, x, w, y, movement, scales: [1.0, 0.0] };
            base.check(Some(groups)).unwrap();
            base.run(Addresses { x: x_at, w: w_at, y: y_at }, false).unwrap();
            let (per_in, per_out) = (4 / groups, 8 / groups);
            let mut worst = 0.0_f32;
            for place in all(y.dims) {
                let [n, k, oy, ox] = place;
                let mut sum = 0.0;
                for [c, r, s] in (0..per_in * 9).map(|at| [at / 9, at / 3 % 3, at % 3]) {
                    let iy = (oy * stride + r * dilation).wrapping_sub(padding[0]);
                    let ix = (ox * stride + s * dilation).wrapping_sub(padding[0]);
                    if iy < 7 && ix < 6 {
                        let (r, s) = if flipped { (2 - r, 2 - s) } else { (r, s) };
                        let channel = k / per_out * per_in + c;
                        sum += x.read(x_at, offset(&x, [n, channel, iy, ix]))
                            * w.read(w_at, offset(&w, [k, c, r, s]));
                    }
                }
                worst = worst.max((sum - y.read(y_at, offset(&y, place))).abs());
            }
            assert!(worst < 1e-5, "{worst}");
            // <z, conv(x, w)> = <x, data(z, w)> = <w, filter(x, z)> for any z.
            let dot = |tensor: &Tensor, a: usize, b: usize| -> f64 {
                all(tensor.dims)
                    .map(|place| offset(tensor, place))
                    .map(|at| f64::from(tensor.read(a, at)) * f64::from(tensor.read(b, at)))
                    .sum()
            };
            let (_, z_at) = place(y.dims, last, |at| number(at + 11));
            let (_, dx_at) = place(x.dims, last, |_| f32::NAN);
            let (_, dw_at) = place(w.dims, last, |_| f32::NAN);
            let expected = dot(&y, y_at, z_at);
            let data = Problem { pass: Pass::BackwardData, ..base };
            data.run(Addresses { x: dx_at, w: w_at, y: z_at }, false).unwrap();
            assert!((dot(&x, x_at, dx_at) - expected).abs() < 1e-3, "data, {groups} groups");
            let filter = Problem { pass: Pass::BackwardFilter, ..base };
            filter.run(Addresses { x: x_at, w: dw_at, y: z_at }, false).unwrap();
            assert!((dot(&w, w_at, dw_at) - expected).abs() < 1e-3, "filter, {groups} groups");
        }
    }

    #[test]
    fn a_wrong_output_shape_is_refused() {
        let tensor = |dims: [i64; 4]| {
            Tensor::new(Number::Bf16, &dims, &[dims[1] * dims[2] * dims[3], 1, 9, 3]).unwrap()
        };
        let movement = Movement {
            before: [0; 2],
            after: [0; 2],
            strides: [1; 2],
            dilations: [1; 2],
            flipped: false,
        };
        let problem = Problem {
            pass: Pass::Forward,
            x: tensor([1, 3, 5, 5]),
            w: tensor([2, 3, 3, 3]),
            y: tensor([1, 2, 5, 5]),
            movement,
            scales: [1.0, 0.0],
        };
        assert_eq!(problem.check(None).unwrap_err().code, SHAPE_MISMATCH);
    }
}
