//! Random numbers that follow from a seed: SplitMix64.

/// The increment of the sequence.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A sequence of numbers.
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The sequence of a seed and an image, unlike those of other images.
    pub fn of_image(seed: u64, key: u64) -> Self {
        // Mixed twice, so that seeds and keys that follow one another start far apart.
        Self { state: mix(mix(seed.wrapping_add(GAMMA)) ^ key) }
    }

    /// All 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// `n` different numbers below `of`, in random order.
    ///
    /// # Panics
    ///
    /// When `n` is above `of`.
    pub fn choose(&mut self, n: usize, of: usize) -> Vec<usize> {
        assert!(n <= of, "{n} of {of}");
        let mut all: Vec<usize> = (0..of).collect();
        for i in 0..n {
            let j = i + self.below(of - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_splitmix64() {
        // From the reference implementation, for seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_choice_has_no_number_twice() {
        let mut chosen = Random::new(0).choose(50, 60);
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 50);
        assert!(chosen.iter().all(|&i| i < 60));
        assert_ne!(Random::new(0).choose(5, 60), Random::new(1).choose(5, 60));
    }
}
