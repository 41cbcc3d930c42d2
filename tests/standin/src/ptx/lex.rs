//! PTX as tokens.

use crate::api::{Outcome, refusal};
use crate::driver::codes::INVALID_PTX;

/// A word, a number, a string, or one character of punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An identifier, a directive or an instruction: `%r1`, `.reg`, `ld.global.v4.f32`.
    Word(&'a str),
    /// As written, without a sign: `42`, `0x1F`, `0f3F800000`.
    Number(&'a str),
    Text(&'a str),
    Mark(char),
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Splits a text into tokens, without comments.
///
/// # Errors
/// A comment or string that never ends.
pub(super) fn tokens(text: &str) -> Outcome<Vec<Token<'_>>> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(bytes.len() / 5);
    let mut at = 0;
    let unended = |what| refusal(INVALID_PTX, format!("PTX: a {what} does not end"));
    while at < bytes.len() {
        let byte = bytes[at];
        let start = at;
        match byte {
            _ if byte.is_ascii_whitespace() || byte == 0 => at += 1,
            b'/' if bytes[at..].starts_with(b"//") => {
                at +=
                    bytes[at..].iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end = text[at..].find("*/").ok_or_else(|| unended("comment"))?;
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or_else(|| unended("string"))?;
                found.push(Token::Text(&text[at + 1..at + 1 + end]));
                at += end + 2;
            }
            _ if byte.is_ascii_digit() => {
                while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
                    at += 1;
                }
                found.push(Token::Number(&text[start..at]));
            }
            _ if in_word(byte) => {
                while at < bytes.len() {
                    if in_word(bytes[at]) {
                        at += 1;
                    } else if bytes[at..].starts_with(b"::") {
                        at += 2;
                    } else {
                        break;
                    }
                }
                found.push(Token::Word(&text[start..at]));
            }
            _ => {
                let mark = text[at..].chars().next().unwrap_or('?');
                found.push(Token::Mark(mark));
                at += mark.len_utf8();
            }
        }
    }
    Ok(found)
}

/// A number's bits: integers as such, `0f` as 32 bits, `0d` as 64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Integer(i128),
    Single(u32),
    Double(u64),
}

/// # Errors
/// It is no number of PTX.
pub(super) fn number(text: &str) -> Outcome<Number> {
    let bad = || refusal(INVALID_PTX, format!("PTX: `{text}` is no number"));
    let hex = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| bad());
    let lower = text.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0f") {
        return Ok(Number::Single(u32::try_from(hex(digits)?).map_err(|_| bad())?));
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return Ok(Number::Double(hex(digits)?));
    }
    let digits = lower.trim_end_matches('u');
    let parsed = match digits.get(..2) {
        Some("0x") => i128::from_str_radix(&digits[2..], 16),
        Some("0b") => i128::from_str_radix(&digits[2..], 2),
        _ if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8),
        _ => digits.parse(),
    };
    parsed.map(Number::Integer).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_dots_and_double_colons() {
        let found = tokens("@!%p1 ld.shared::cta.v4.f32 {%f1,_}, [%rd2+-4]; // end\n").unwrap();
        let expected = [
            Token::Mark('@'),
            Token::Mark('!'),
            Token::Word("%p1"),
            Token::Word("ld.shared::cta.v4.f32"),
            Token::Mark('{'),
            Token::Word("%f1"),
            Token::Mark(','),
            Token::Word("_"),
            Token::Mark('}'),
            Token::Mark(','),
            Token::Mark('['),
            Token::Word("%rd2"),
            Token::Mark('+'),
            Token::Mark('-'),
            Token::Number("4"),
            Token::Mark(']'),
            Token::Mark(';'),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_are_integers_or_bits() {
        assert_eq!(number("0f3F800000").unwrap(), Number::Single(0x3F80_0000));
        assert_eq!(number("0d3FF0000000000000").unwrap(), Number::Double(0x3FF0 << 48));
        assert_eq!(number("0x1F").unwrap(), Number::Integer(31));
        assert_eq!(number("4294967295U").unwrap(), Number::Integer(4_294_967_295));
        assert!(number("0q1").is_err());
    }
}
