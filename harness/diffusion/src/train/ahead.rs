//! Random numbers drawn while the device computes.
//!
//! A batch of CIFAR needs some 400,000 normal numbers, which take the host several milliseconds. On a
//! device that makes a step in not many more, they are drawn by a thread of their own, one batch ahead:
//! the same numbers as on the CPU, since they follow from the batch's number and from nothing else.

use std::thread::{Builder, JoinHandle};

use super::noising::{Draws, Plan};

/// The numbers of the batch that comes next, if anybody guessed which it would be.
#[derive(Default)]
pub(super) struct Ahead {
    next: Option<(Plan, u64, JoinHandle<Draws>)>,
}

impl Ahead {
    /// The numbers of a batch; they are drawn here where the thread drew others.
    pub(super) fn take(&mut self, plan: Plan, number: u64) -> Draws {
        let ready = self.next.take().filter(|(of, nth, _)| (*of, *nth) == (plan, number));
        // A thread that could not draw has panicked, and so will this one, with the same message.
        ready.and_then(|(_, _, thread)| thread.join().ok()).unwrap_or_else(|| plan.draw(number))
    }

    /// Begins to draw for a batch. Without a thread they are drawn when they are asked for.
    pub(super) fn prepare(&mut self, plan: Plan, number: u64) {
        let thread = Builder::new().name("noise".to_owned()).spawn(move || plan.draw(number));
        self.next = thread.ok().map(|thread| (plan, number, thread));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_guessed_the_numbers_are_those_of_the_batch() {
        let plan = Plan { seed: 1, batch: 3, per_image: 5, interval: 10, cond_ratio: Some(0.5) };
        let mut ahead = Ahead::default();
        assert_eq!(ahead.take(plan, 4), plan.draw(4));
        for guess in [5, 9] {
            ahead.prepare(plan, guess);
            assert_eq!(ahead.take(plan, 5), plan.draw(5));
        }
        assert_ne!(plan.draw(5), plan.draw(9));
        ahead.prepare(plan, 5);
        let other = Plan { seed: 2, ..plan };
        assert_eq!(ahead.take(other, 5), other.draw(5));
    }
}
