//! What every network asks of its configuration, whichever file it stands in.

use super::NetConfigError;
use super::blocks::GROUPS;

/// The largest size that is taken. It is far above that of any network, and so low that products of
/// sizes, which a file decides, stay within a `usize`.
const LARGEST: usize = 1 << 16;

/// The deepest network: each level halves the image.
const MOST_LEVELS: usize = 16;

/// The sizes that both networks have.
pub(super) struct Sizes<'a> {
    pub(super) image_size: usize,
    pub(super) num_classes: usize,
    /// Others that are at least 1, by key.
    pub(super) positive: &'a [(&'static str, usize)],
    /// Channels of the first level.
    pub(super) channels: usize,
    /// Channels of each level as multiples of `channels`, and their key.
    pub(super) multiples: (&'static str, &'a [usize]),
    pub(super) dropout: f64,
}

impl Sizes<'_> {
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn check(&self) -> Result<(), NetConfigError> {
        let fail = |key, message| Err(NetConfigError { key, message });
        let positive = self.positive.iter().copied().chain([("image_size", self.image_size)]);
        for (key, value) in positive {
            if !(1..=LARGEST).contains(&value) {
                return fail(key, format!("expected 1 to {LARGEST}, got {value}"));
            }
        }
        if self.num_classes > LARGEST {
            let message = format!("expected at most {LARGEST}, got {}", self.num_classes);
            return fail("num_classes", message);
        }
        let (key, multiples) = self.multiples;
        if !(1..=MOST_LEVELS).contains(&multiples.len()) {
            let got = multiples.len();
            return fail(key, format!("expected 1 to {MOST_LEVELS} multiples, got {got}"));
        }
        let most = LARGEST / self.channels.max(1);
        if let Some(multiple) = multiples.iter().find(|&multiple| !(1..=most).contains(multiple)) {
            return fail(key, format!("expected multiples from 1 to {most}, got {multiple}"));
        }
        let halvings = multiples.len() - 1;
        if !self.image_size.is_multiple_of(1 << halvings) {
            let message =
                format!("expected to be halved {halvings} times, got {}", self.image_size);
            return fail("image_size", message);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("expected at least 0 and below 1, got {}", self.dropout);
            return fail("dropout", message);
        }
        Ok(())
    }
}

/// Every normalisation divides its channels, which are multiples of the first level's, into groups.
///
/// # Errors
/// Channels of the first level that cannot be divided so.
pub(super) fn check_groups(key: &'static str, channels: usize) -> Result<(), NetConfigError> {
    match channels.is_multiple_of(GROUPS) {
        true => Ok(()),
        false => {
            let message = format!("expected a multiple of {GROUPS}, got {channels}");
            Err(NetConfigError { key, message })
        }
    }
}
