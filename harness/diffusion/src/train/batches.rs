//! Which batches make up a step.
//!
//! A pass over the images gives whole batches only, what is left over is dropped. Every
//! `accumulate` batches of a pass make a step. Where a pass is no multiple of that, the gradients
//! of its last batches are added to the first step of the next pass: the reference resets its count
//! at a pass, and its gradients at a step.

use oodbench_nn::train::{Place, TrainError};

use super::recipe::{Length, Recipe};

pub(super) struct Batches {
    an_epoch: u64,
    a_step: u64,
}

impl Batches {
    pub(super) fn new(n_images: usize, recipe: &Recipe) -> Result<Self, TrainError> {
        if recipe.batch_size == 0 || recipe.accumulate == 0 {
            return Err(TrainError::recipe("batch_size", "at least 1", 0));
        }
        let an_epoch = (n_images / recipe.batch_size) as u64;
        if an_epoch < recipe.accumulate {
            let batch = recipe.batch_size.saturating_mul(recipe.accumulate as usize);
            return Err(TrainError::TooFewImages { batch, images: n_images });
        }
        Ok(Self { an_epoch, a_step: recipe.accumulate })
    }

    pub(super) fn steps_an_epoch(&self) -> u64 {
        self.an_epoch / self.a_step
    }

    pub(super) fn total_steps(&self, length: Length) -> u64 {
        match length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs.saturating_mul(self.steps_an_epoch()),
        }
    }

    /// The batches of a step, counted from 0.
    pub(super) fn of_step(&self, step: u64) -> Vec<Place> {
        let epoch = step / self.steps_an_epoch();
        let first = step % self.steps_an_epoch() * self.a_step;
        let of =
            |epoch: u64, range: std::ops::Range<u64>| range.map(move |nth| Place { epoch, nth });
        let own = of(epoch, first..first + self.a_step);
        if first > 0 || epoch == 0 {
            return own.collect();
        }
        let left = self.steps_an_epoch() * self.a_step..self.an_epoch;
        of(epoch - 1, left).chain(own).collect()
    }

    /// The number of a batch in the whole training.
    pub(super) fn number(&self, place: Place) -> u64 {
        place.epoch * self.an_epoch + place.nth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(batches: &Batches, step: u64) -> Vec<(u64, u64)> {
        batches.of_step(step).iter().map(|place| (place.epoch, place.nth)).collect()
    }

    #[test]
    fn without_accumulation_a_step_is_a_batch() {
        let batches = Batches { an_epoch: 3, a_step: 1 };
        let all: Vec<_> = (0..6).flat_map(|step| places(&batches, step)).collect();
        assert_eq!(all, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        let numbers = batches.of_step(4).into_iter().map(|place| batches.number(place));
        assert_eq!(numbers.collect::<Vec<_>>(), [4]);
        assert_eq!(batches.total_steps(Length::Epochs(2)), 6);
    }

    #[test]
    fn what_a_pass_leaves_over_goes_into_the_next_step() {
        let batches = Batches { an_epoch: 5, a_step: 2 };
        assert_eq!(places(&batches, 0), [(0, 0), (0, 1)]);
        assert_eq!(places(&batches, 1), [(0, 2), (0, 3)]);
        assert_eq!(places(&batches, 2), [(0, 4), (1, 0), (1, 1)]);
        assert_eq!(places(&batches, 3), [(1, 2), (1, 3)]);
        assert_eq!(batches.total_steps(Length::Epochs(2)), 4);
        assert_eq!(batches.total_steps(Length::Epochs(u64::MAX)), u64::MAX);
    }
}
