//! I-ODIN: ODIN whose step moves the most sensitive pixel alone.
//!
//! Regmi, "Going Beyond Conventional OOD Detection", 2025. Score: that of [ODIN](crate::odin),
//! `-max_c softmax(l(x') / T)_c`, but `x'` differs from the image `x` in one channel of one pixel:
//! the one where the cross-entropy with the predicted class changes most per unit of the
//! *normalised* image, `argmax_i |g_i| s_i` for the gradient `g` with respect to pixels in `[0, 1]`
//! and the standard deviation `s` that the classifier divides by. It moves by `noise`, in units of
//! pixels in `[0, 1]`, to where the probability of that class rises.
//!
//! Of equal ones the first moves, in the order of channels, rows and columns, as in OpenOOD. Where
//! the gradient is 0 everywhere that is the first of all, by `-noise`.

use oodbench_sdk::prelude::*;

use crate::odin::{Params, against, score_after};

/// I-ODIN.
pub struct Iodin {
    params: Params,
    host: Host,
}

impl Detector for Iodin {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "iodin",
            title: "I-ODIN",
            family: "gradient",
            summary: "ODIN with a step of the most sensitive pixel alone",
            paper: "Regmi, Going Beyond Conventional OOD Detection",
            year: 2025,
            url: "https://arxiv.org/abs/2411.10794",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::GRADIENT).and(Needs::FORWARD),
            params: Params::described(),
            // Logits are twice the first channel's mean and the second's: the first pixel of the
            // first channel moves up by 0.4, its mean by 0.1, and 1.4 and 0.4 are left.
            example: Example::of_images(
                &[&[0.6, 0.6, 0.6, 0.6, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5]],
                &[-0.731_058_6],
            )
            .head(&[&[2.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
            .param("temperature", 1.0)
            .param("noise", 0.4),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        params.check()?;
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let std = self.host.normalisation()?.std;
        let noise = self.params.noise as f32;
        let step = |image: &mut [f32], gradient: &[f32]| {
            let i = most_sensitive(gradient, &std);
            image[i] += against(gradient[i], noise);
        };
        score_after(step, &self.params, &self.host, batch, scores)
    }
}

/// The place of the greatest gradient with respect to normalised pixels; the first of equals.
///
/// # Shapes
/// `gradient`: `[3, height, width]`, not empty.
fn most_sensitive(gradient: &[f32], std: &[f32; 3]) -> usize {
    let pixels = gradient.len() / std.len();
    let of_normalised = |i: usize| (gradient[i] * std[i / pixels]).abs();
    (1..gradient.len())
        .fold(0, |best, i| if of_normalised(i) > of_normalised(best) { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_greatest_normalised_gradients_is_taken() {
        let gradient = [0.5, -1.0, 1.0, 0.0, 0.0, -2.0];
        assert_eq!(most_sensitive(&gradient, &[1.0; 3]), 5);
        assert_eq!(most_sensitive(&gradient, &[1.0, 1.0, 0.25]), 1);
        assert_eq!(most_sensitive(&[0.0; 6], &[1.0; 3]), 0);
    }
}
