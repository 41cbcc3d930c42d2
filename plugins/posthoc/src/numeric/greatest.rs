//! The greatest values of a row, which ASH and SCALE take for the part that matters.

/// How many of `n` values are left when the given percentage is taken away; at least one, where
/// the rule of both papers' code would leave none. Halves go to the even neighbour, as numpy's
/// `round` has it.
pub fn n_left(n: usize, percentile: f64) -> usize {
    let removed = (n as f64 * percentile / 100.0).round_ties_even() as usize;
    n.saturating_sub(removed).max(1)
}

/// Which values of a row are its `k` greatest; the first of equal ones, where not all can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Greatest {
    least: f32,
    n_equal: usize,
    /// The sum of the `k` values.
    pub sum: f64,
}

impl Greatest {
    /// The `k` greatest of a row; all of them, when there are not so many.
    pub fn of(row: &[f32], k: usize) -> Self {
        let k = k.min(row.len());
        if k == 0 {
            return Self { least: f32::INFINITY, n_equal: 0, sum: 0.0 };
        }
        let mut values = row.to_vec();
        let (_, &mut least, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let n_greater = values[..k].iter().filter(|&&x| x > least).count();
        let mut greatest = Self { least, n_equal: k - n_greater, sum: 0.0 };
        // In the order of the row, so that the sum does not depend on how the selection went.
        greatest.sum = greatest.iter(row).map(|(_, x)| f64::from(x)).sum();
        greatest
    }

    /// The places of the `k` values in the row that they are of, in order, and the values.
    pub fn iter<'a>(&self, row: &'a [f32]) -> impl Iterator<Item = (usize, f32)> + use<'a> {
        let Self { least, mut n_equal, .. } = *self;
        row.iter().copied().enumerate().filter(move |&(_, x)| {
            if x == least && n_equal > 0 {
                n_equal -= 1;
                return true;
            }
            x > least
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_neighbour() {
        // d - int(np.round(d * p / 100))
        for (n, percentile, expected) in
            [(64, 90.0, 6), (10, 65.0, 4), (10, 75.0, 2), (10, 85.0, 2), (512, 65.0, 179)]
        {
            assert_eq!(n_left(n, percentile), expected, "{n} values at {percentile}");
        }
    }

    #[test]
    fn one_value_is_always_left() {
        assert_eq!(n_left(2, 95.0), 1);
        assert_eq!(n_left(3, 100.0), 1);
    }

    #[test]
    fn the_first_of_equals_are_taken() {
        let row = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0];
        let greatest = Greatest::of(&row, 4);
        let places: Vec<usize> = greatest.iter(&row).map(|(i, _)| i).collect();
        assert_eq!(places, [1, 2, 3, 4]);
        assert_eq!(greatest.sum, 10.0);
    }

    #[test]
    fn both_zeros_are_equal() {
        let row = [0.0, -0.0, 0.0, -1.0];
        assert_eq!(Greatest::of(&row, 2).iter(&row).count(), 2);
        assert_eq!(Greatest::of(&row, 9).iter(&row).count(), 4);
        assert_eq!(Greatest::of(&[], 1).iter(&[]).count(), 0);
    }
}
