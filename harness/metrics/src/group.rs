//! Several values of one metric as one: the mean over the data sets of a group, and mean and spread
//! over seeds.

/// The unweighted mean over the data sets of a group: near-OOD average, far-OOD average.
///
/// Each data set counts the same however many images it has, as in OpenOOD's tables. `None` for an
/// empty group and where any member is absent: a mean over the members that happen to be there would be
/// a different quantity under the same name, and would rank a run that lacks its hardest data set above
/// a complete one. A caller that wants the mean of a part asks for that part and names it so. A member
/// that is not finite counts as absent.
pub fn group_mean(members: &[Option<f64>]) -> Option<f64> {
    Some(over_seeds(members)?.mean)
}

/// Mean and standard deviation of a metric over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The population standard deviation: divided by `n`, not by `n` - 1, as in OpenOOD's tables. It
    /// is 0 for one seed.
    pub std: f64,
    /// The number of seeds.
    pub n: usize,
}

/// Mean and population standard deviation of a metric over seeds.
///
/// `None` for no seeds and where any seed is absent or not finite, for the reason given at
/// [`group_mean`].
pub fn over_seeds(values: &[Option<f64>]) -> Option<Spread> {
    let values: Vec<f64> = values.iter().copied().collect::<Option<_>>()?;
    if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let n = values.len();
    // Taken about the first value, so that equal values have exactly that mean and no spread.
    let origin = values[0];
    let offset = values.iter().map(|value| value - origin).sum::<f64>() / n as f64;
    let mean = origin + offset;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
    Some(Spread { mean, std: variance.sqrt(), n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_count_the_same() {
        assert_eq!(group_mean(&[Some(0.5), Some(0.75), Some(1.0)]), Some(0.75));
        assert_eq!(group_mean(&[Some(0.9)]), Some(0.9));
    }

    #[test]
    fn a_group_is_absent_when_a_member_is() {
        assert_eq!(group_mean(&[]), None);
        assert_eq!(group_mean(&[Some(0.5), None]), None);
        assert_eq!(group_mean(&[Some(0.5), Some(f64::NAN)]), None);
    }

    #[test]
    fn the_spread_is_that_of_the_population() {
        let spread = over_seeds(&[Some(0.25), Some(0.75)]).unwrap();
        assert_eq!(spread, Spread { mean: 0.5, std: 0.25, n: 2 });
    }

    #[test]
    fn equal_seeds_have_no_spread() {
        for n in 1..10 {
            let spread = over_seeds(&vec![Some(0.1); n]).unwrap();
            assert_eq!(spread, Spread { mean: 0.1, std: 0.0, n });
        }
    }

    #[test]
    fn the_spread_is_absent_when_a_seed_is() {
        assert_eq!(over_seeds(&[]), None);
        assert_eq!(over_seeds(&[Some(0.5), None, Some(0.5)]), None);
    }
}
