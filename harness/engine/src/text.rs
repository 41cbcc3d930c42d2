//! Errors as one line.

use std::error::Error;

/// An error and its causes: `load checkpoint …: no `fc.weight``. A cause that its error already
/// repeats is left out.
pub fn chain(error: &dyn Error) -> String {
    let text_of = |error: &dyn Error| without_backtrace(&error.to_string()).to_owned();
    let mut text = text_of(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = text_of(cause);
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A message without the stack that candle writes behind its own where `RUST_BACKTRACE` is set.
fn without_backtrace(text: &str) -> &str {
    text.find("\n   0: ").map_or(text, |end| text[..end].trim_end())
}

/// A text as one line. A remedy, which stands in a paragraph of its own, comes behind a semicolon.
pub fn one_line(text: &str) -> String {
    without_backtrace(text)
        .replace("\n\nhint: ", "; hint: ")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("load `a.safetensors`")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_backtrace_is_no_part_of_a_message() {
        let message = "no `fc.weight`\n   0: candle_core::error::Error::bt\n   1: main\n";
        let error = Outer(std::io::Error::other(message));
        assert_eq!(chain(&error), "load `a.safetensors`: no `fc.weight`");
        assert_eq!(one_line(message), "no `fc.weight`");
        assert_eq!(one_line("two\n  lines\n"), "two lines");
        assert_eq!(one_line("too few images\n\nhint: more"), "too few images; hint: more");
    }
}
