//! Images in groups, each denoised from several timesteps, and the scores that are read off.

use std::ops::Range;

use rayon::prelude::*;

use super::change::{Readout, Space, changes};
use super::error::DenoiseError;
use super::process::{Classify, Denoiser, Images, Sample, Subjects, Tick};

/// The noise of an image's repeat: called with the image's index, the repeat and the length, by
/// several threads at once.
pub type Noise<'a> = dyn Fn(usize, usize, usize) -> Vec<f32> + Sync + 'a;

/// How images are denoised, apart from where classes, noise and the classifier come from.
pub struct Scoring<'a> {
    pub denoiser: Denoiser<'a>,
    /// How far images are diffused.
    pub timesteps: &'a [usize],
    pub repeats: usize,
}

/// Images that were denoised together.
pub struct Group<'a> {
    /// Which images of those that were given.
    pub images: Range<usize>,
    /// One for each timestep, empty where it was not asked for; rows are `[image, repeat]`. The
    /// rows behind those of [`Group::images`] fill the group up and mean nothing.
    pub samples: &'a [Sample],
}

impl Scoring<'_> {
    /// Images that are worked on at once, so that their repeats fill an evaluation of the
    /// network. What is held in memory follows from it, not from the number of images.
    ///
    /// It is always so many, the last ones being filled up: matrix products round differently at
    /// other sizes, and a score is to be the same to the last bit in whatever company.
    pub fn images_at_once(&self) -> usize {
        (self.denoiser.rows_at_once() / self.repeats.max(1)).max(1)
    }

    /// Which timesteps some readouts look at.
    fn needed(&self, readouts: &[Readout]) -> Result<Vec<bool>, DenoiseError> {
        let mut needed = vec![false; self.timesteps.len()];
        let last = needed.len().saturating_sub(1);
        for Readout { change, .. } in readouts {
            if change.nth == 0 || change.nth > last {
                return Err(DenoiseError::Change { last, got: change.nth });
            }
            change.pair().into_iter().for_each(|i| needed[i] = true);
        }
        Ok(needed)
    }

    /// How often [`Scoring::scores`] evaluates the network for so many images.
    ///
    /// # Errors
    /// A change that there is not.
    pub fn evaluations(
        &self,
        n_images: usize,
        readouts: &[Readout],
    ) -> Result<usize, DenoiseError> {
        let needed = self.needed(readouts)?;
        let timesteps = self.timesteps.iter().zip(needed).filter(|(_, needed)| *needed);
        Ok(self.evaluations_of(n_images, timesteps.map(|(&t, _)| t)))
    }

    /// How often [`Scoring::for_each_group`] evaluates the network for so many images.
    pub fn evaluations_of_all(&self, n_images: usize) -> usize {
        self.evaluations_of(n_images, self.timesteps.iter().copied())
    }

    fn evaluations_of(&self, n_images: usize, timesteps: impl Iterator<Item = usize>) -> usize {
        let n_rows = self.images_at_once() * self.repeats;
        let of_one: usize = timesteps.map(|t| self.denoiser.evaluations(n_rows, t)).sum();
        n_images.div_ceil(self.images_at_once()) * of_one
    }

    /// Denoises every image from every timestep, group by group in order, and calls `visit` with
    /// each group.
    ///
    /// # Shapes
    /// `classes`: `[n]`, what the classifier predicts for the clean images
    ///
    /// # Errors
    /// What [`Denoiser::sample`] and `visit` say.
    pub fn for_each_group(
        &self,
        images: Images<'_>,
        classes: &[u32],
        noise: &Noise<'_>,
        classify: Option<&Classify<'_>>,
        tick: &mut Tick<'_>,
        visit: &mut dyn FnMut(Group<'_>) -> Result<(), DenoiseError>,
    ) -> Result<(), DenoiseError> {
        let needed = vec![true; self.timesteps.len()];
        self.walk(images, classes, noise, &needed, classify, tick, visit)
    }

    fn walk(
        &self,
        images: Images<'_>,
        classes: &[u32],
        noise: &Noise<'_>,
        needed: &[bool],
        classify: Option<&Classify<'_>>,
        tick: &mut Tick<'_>,
        visit: &mut dyn FnMut(Group<'_>) -> Result<(), DenoiseError>,
    ) -> Result<(), DenoiseError> {
        let (n_images, image_len) = (images.len(), images.image_len());
        if classes.len() != n_images {
            let (what, got) = ("classes of images", classes.len());
            return Err(DenoiseError::Length { what, expected: n_images, got });
        }
        let at_once = self.images_at_once();
        for first in (0..n_images).step_by(at_once) {
            // Where images are lacking, the last one is taken again.
            let chosen: Vec<usize> =
                (first..first + at_once).map(|i| i.min(n_images - 1)).collect();
            let mut pixels = Vec::with_capacity(at_once * image_len);
            chosen.iter().for_each(|&image| pixels.extend_from_slice(images.image(image)));
            // A GPU waits for these.
            let noises: Vec<Vec<f32>> = (0..at_once * self.repeats)
                .into_par_iter()
                .map(|row| noise(chosen[row / self.repeats], row % self.repeats, image_len))
                .collect();
            let subjects = Subjects {
                images: Images::new(&pixels, images.size())?,
                classes: &chosen.iter().map(|&image| classes[image]).collect::<Vec<u32>>(),
                noise: &noises.concat(),
                repeats: self.repeats,
            };
            let mut sample = |(&t, &needed)| match needed {
                true => self.denoiser.sample(&subjects, t, classify, tick),
                false => Ok(Sample::default()),
            };
            let samples: Vec<Sample> =
                self.timesteps.iter().zip(needed).map(&mut sample).collect::<Result<_, _>>()?;
            let images = first..(first + at_once).min(n_images);
            visit(Group { images, samples: &samples })?;
        }
        Ok(())
    }

    /// One score for each readout and image, from one pass over the images: a timestep that
    /// several readouts look at is denoised once, one that none looks at is not, and the
    /// classifier runs if a readout looks at it.
    ///
    /// # Shapes
    /// - `classes`: `[n]`, what the classifier predicts for the clean images
    /// - result: `[readout, n]`
    ///
    /// # Errors
    /// A change that there is not, and what [`Denoiser::sample`] says.
    pub fn scores(
        &self,
        images: Images<'_>,
        classes: &[u32],
        noise: &Noise<'_>,
        readouts: &[Readout],
        classify: &Classify<'_>,
        tick: &mut Tick<'_>,
    ) -> Result<Vec<f32>, DenoiseError> {
        let needed = self.needed(readouts)?;
        let pixels_alone = readouts.iter().all(|readout| readout.space == Space::Image);
        let classify = if pixels_alone { None } else { Some(classify) };
        let n_images = images.len();
        let mut scores = vec![0.0; readouts.len() * n_images];
        let mut read_off = |group: Group<'_>| {
            for (readout, scores) in readouts.iter().zip(scores.chunks_exact_mut(n_images)) {
                let [before, after] =
                    readout.change.pair().map(|i| group.samples[i].space(readout.space));
                let found = changes(before, after, self.images_at_once(), self.repeats)?;
                let scores = &mut scores[group.images.clone()];
                scores.copy_from_slice(&found[..scores.len()]);
            }
            Ok(())
        };
        self.walk(images, classes, noise, &needed, classify, tick, &mut read_off)?;
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use oodbench_nn::formula;

    use super::*;
    use crate::denoise::{Change, Mode, Outputs, network, noise};
    use crate::sampler::{Indexing, Method};

    const SIDE: usize = 4;
    const LEN: usize = 3 * SIDE * SIDE;
    const TIMESTEPS: [usize; 4] = [0, 120, 240, 300];

    /// Channel means, and a linear head on them.
    fn classify(images: Images<'_>) -> Result<Outputs, crate::denoise::Refusal> {
        let mut outputs = Outputs::default();
        for image in images.values().chunks_exact(LEN) {
            let means: Vec<f32> = image
                .chunks_exact(LEN / 3)
                .map(|channel| channel.iter().sum::<f32>() / (LEN / 3) as f32)
                .collect();
            outputs.logits.extend([means[0] - means[1], means[1] - 2.0 * means[2]]);
            outputs.features.extend(means);
        }
        Ok(outputs)
    }

    /// The scores of the images with these keys, readout by readout; the key decides the pixels
    /// too.
    fn scores(keys: &[u64], seed: u64, batch: usize, readouts: &[Readout]) -> Vec<Vec<f32>> {
        scores_by(Method::Ddim, keys, seed, batch, readouts)
    }

    fn scores_by(
        method: Method,
        keys: &[u64],
        seed: u64,
        batch: usize,
        readouts: &[Readout],
    ) -> Vec<Vec<f32>> {
        let loaded = network::untrained(SIDE, 2, &Device::Cpu).unwrap();
        let scoring = Scoring {
            denoiser: Denoiser {
                model: loaded.model.as_ref(),
                schedule: &loaded.schedule,
                method,
                steps: 10,
                indexing: Indexing::Reference,
                beta: 2.0,
                batch,
                device: &Device::Cpu,
            },
            timesteps: &TIMESTEPS,
            repeats: 3,
        };
        let pixels: Vec<f32> =
            keys.iter().flat_map(|key| formula::uniform(&key.to_string(), LEN, 0.0, 1.0)).collect();
        let images = Images::new(&pixels, (SIDE, SIDE)).unwrap();
        let classes: Vec<u32> = keys.iter().map(|&key| key as u32 % 2).collect();
        let noise = |image: usize, repeat, len| noise::noise(seed, keys[image], repeat, len);
        let mut ticks = 0;
        let mut tick = || {
            ticks += 1;
            Ok(())
        };
        let scores =
            scoring.scores(images, &classes, &noise, readouts, &classify, &mut tick).unwrap();
        if !method.is_adaptive() {
            assert_eq!(scoring.evaluations(keys.len(), readouts).unwrap(), ticks);
        }
        assert_eq!(scores.len(), readouts.len() * keys.len());
        if keys.is_empty() {
            return vec![Vec::new(); readouts.len()];
        }
        scores.chunks_exact(keys.len()).map(<[f32]>::to_vec).collect()
    }

    #[track_caller]
    fn assert_close(expected: &[f32], got: &[f32]) {
        assert_eq!(expected.len(), got.len());
        for (a, b) in expected.iter().zip(got) {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "expected {expected:?}, got {got:?}");
        }
    }

    #[test]
    fn a_score_depends_on_neither_batch_nor_order() {
        let keys: Vec<u64> = (0..5).collect();
        let all = Readout::all(TIMESTEPS.len());
        // Room for two images with their repeats and both branches, for all of them, for less than one.
        for batch in [12, 64, 5] {
            let whole = scores(&keys, 0, batch, &all);
            assert!(whole.iter().flatten().all(|score| score.is_finite() && *score > 0.0));
            for (i, &key) in keys.iter().enumerate() {
                let alone = scores(&[key], 0, batch, &all).concat();
                let among: Vec<f32> = whole.iter().map(|of_readout| of_readout[i]).collect();
                assert_eq!(among, alone, "one by one");
            }
            let reversed: Vec<u64> = keys.iter().rev().copied().collect();
            let mut backwards = scores(&reversed, 0, batch, &all);
            backwards.iter_mut().for_each(|of_readout| of_readout.reverse());
            assert_eq!(whole, backwards, "in reverse order");
        }
    }

    #[test]
    fn nor_does_it_under_an_adaptive_method() {
        let readout = Readout { space: Space::Image, change: Change { mode: Mode::Local, nth: 1 } };
        let of = |keys: &[u64], batch| scores_by(Method::Pf, keys, 0, batch, &[readout]).concat();
        let whole = of(&[0, 1, 2], 64);
        assert_eq!(whole, [of(&[0], 64), of(&[1], 5), of(&[2], 12)].concat());
        assert!(whole.iter().all(|score| score.is_finite() && *score > 0.0), "{whole:?}");
    }

    #[test]
    fn a_readout_is_the_same_alone_and_among_others() {
        let all = Readout::all(TIMESTEPS.len());
        let together = scores(&[0, 1, 2], 0, 12, &all);
        for (readout, together) in all.iter().zip(&together) {
            let alone = scores(&[0, 1, 2], 0, 12, &[*readout]);
            assert_eq!(&alone[0], together, "{readout:?}");
        }
        let distinct: std::collections::HashSet<u32> =
            together.iter().map(|of_readout| of_readout[0].to_bits()).collect();
        assert_eq!(distinct.len(), all.len(), "two readouts are one");
    }

    #[test]
    fn the_size_of_an_evaluation_changes_rounding_alone() {
        let all = Readout::all(TIMESTEPS.len());
        let whole = scores(&[0, 1, 2], 0, 64, &all).concat();
        for batch in [1, 7, 12] {
            assert_close(&whole, &scores(&[0, 1, 2], 0, batch, &all).concat());
        }
    }

    #[test]
    fn the_seed_changes_every_score() {
        let all = Readout::all(TIMESTEPS.len());
        let [one, two] = [0, 1].map(|seed| scores(&[0, 1, 2], seed, 64, &all).concat());
        assert!(one.iter().zip(&two).all(|(a, b)| a != b), "{one:?} {two:?}");
    }

    #[test]
    fn no_images_have_no_scores() {
        let readout = Readout { space: Space::Logit, change: Change { mode: Mode::Local, nth: 1 } };
        assert!(scores(&[], 0, 64, &[readout]).concat().is_empty());
    }

    #[test]
    fn a_change_that_there_is_not_is_an_error() {
        let loaded = network::untrained(SIDE, 2, &Device::Cpu).unwrap();
        let denoiser = Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: Method::Ddim,
            steps: 10,
            indexing: Indexing::Reference,
            beta: 2.0,
            batch: 8,
            device: &Device::Cpu,
        };
        let scoring = Scoring { denoiser, timesteps: &TIMESTEPS, repeats: 1 };
        for nth in [0, 4] {
            let change = Change { mode: Mode::Global, nth };
            let err = scoring.evaluations(1, &[Readout { space: Space::Image, change }]);
            let text = err.unwrap_err().to_string();
            assert_eq!(
                text,
                format!("change expected 1 to 3, the timesteps after the first, got {nth}")
            );
        }
    }
}
