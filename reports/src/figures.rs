//! How numbers and words look in the text reports.

use oodbench_record::SetRef;

/// What stands in a table where there is nothing.
pub(crate) const ABSENT: &str = "-";

/// A fraction as a percentage; empty where it is absent.
pub(crate) fn percent(fraction: Option<f64>, decimals: usize) -> String {
    number(fraction.map(|fraction| 100.0 * fraction), decimals)
}

/// A number; empty where it is absent.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

/// Images per second with about three digits; empty where it is absent.
pub(crate) fn speed(images_per_s: Option<f64>) -> String {
    let decimals = match images_per_s {
        Some(speed) if speed >= 100.0 => 0,
        Some(speed) if speed >= 10.0 => 1,
        _ => 2,
    };
    number(images_per_s, decimals)
}

/// Megabytes of 10⁶ bytes.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The text, or [`ABSENT`] for an empty one.
pub(crate) fn or_absent(text: String) -> String {
    if text.is_empty() { ABSENT.to_owned() } else { text }
}

/// The text on one line. Reasons come from plugins: line ends would break tables, and escape
/// sequences would reach the terminal.
pub(crate) fn one_line(text: &str) -> String {
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    text.split(is_gap).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `near/a, near/b`.
pub(crate) fn listed<'a>(sets: impl IntoIterator<Item = &'a SetRef>) -> String {
    sets.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_lose_line_ends_and_escapes() {
        assert_eq!(one_line("  a\r\n\tb\u{1b}[31m c\u{0}\n"), "a b [31m c");
        assert_eq!(one_line(" \n"), "");
    }

    #[test]
    fn speeds_have_about_three_digits() {
        let shown = [1234.56, 100.0, 99.96, 9.996, 0.5].map(|it| speed(Some(it)));
        assert_eq!(shown, ["1235", "100", "100.0", "10.00", "0.50"]);
    }

    #[test]
    fn what_is_absent_is_no_number() {
        assert_eq!(percent(None, 2), "");
        assert_eq!(percent(Some(0.97505), 2), "97.50");
        assert_eq!(percent(Some(1.0), 4), "100.0000");
        assert_eq!(or_absent(number(None, 1)), "-");
    }
}
