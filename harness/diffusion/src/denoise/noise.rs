//! The noise of an image: a function of the run's seed, the image's key and the repeat, and of
//! nothing else, so that a score depends on neither batch, nor shard, nor order.
//!
//! As in the reference, all timesteps of a repeat share one noise. The change between two of them
//! is then what denoising did, and not the difference of two draws.

use oodbench_nn::formula::Stream;

/// `len` standard normal numbers from the [`Stream`] named `diffood/SEED/KEY/REPEAT`, all decimal.
pub fn noise(seed: u64, key: u64, repeat: usize, len: usize) -> Vec<f32> {
    let mut stream = Stream::new(&format!("diffood/{seed}/{key}/{repeat}"));
    (0..len).map(|_| stream.next_normal() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_key_and_repeat_give_other_noise() {
        let one = noise(1, 2, 3, 8);
        assert_eq!(one, noise(1, 2, 3, 8));
        for other in [noise(0, 2, 3, 8), noise(1, 0, 3, 8), noise(1, 2, 0, 8)] {
            assert!(one.iter().zip(&other).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn it_is_standard_normal() {
        let (n, xs) = (40_000.0, noise(0, 7, 0, 40_000));
        let moment = |k| xs.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / n;
        // Five standard errors of each moment.
        assert!(moment(1).abs() < 5.0 / n.sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }
}
