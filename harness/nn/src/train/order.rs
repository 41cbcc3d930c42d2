//! Which images belong to which step: shuffled passes over a set, cut into batches.

use crate::examples::epoch_order;

/// A batch by its place: the pass over the images, and the number of the batch within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub epoch: u64,
    pub nth: u64,
}

/// The order of a pass, kept until the next one begins.
pub struct Order {
    n_images: usize,
    batch_size: usize,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    pub fn new(n_images: usize, batch_size: usize, seed: u64) -> Self {
        Self { n_images, batch_size, seed, epoch: None }
    }

    /// The images of a batch; the last one of a pass may be smaller than the others.
    pub fn batch(&mut self, place: Place) -> &[usize] {
        if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            self.epoch = Some((place.epoch, epoch_order(self.n_images, self.seed, place.epoch)));
        }
        let order = self.epoch.as_ref().map_or(&[][..], |(_, order)| order);
        order.chunks(self.batch_size.max(1)).nth(place.nth as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_sees_every_image_once_and_passes_differ() {
        let mut order = Order::new(10, 4, 1);
        let mut pass = |epoch| {
            let batch = |nth| order.batch(Place { epoch, nth }).to_vec();
            (0..3).flat_map(batch).collect::<Vec<_>>()
        };
        let (first, second) = (pass(0), pass(1));
        assert_ne!(first, second);
        assert_eq!(pass(0), first, "going back gives the same order");
        let mut sorted = second;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(order.batch(Place { epoch: 0, nth: 2 }).len(), 2);
        assert!(order.batch(Place { epoch: 0, nth: 3 }).is_empty());
    }
}
