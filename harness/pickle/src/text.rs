//! The text forms of protocol 0: numbers in decimal, strings as Python's `repr` writes them.

/// An integer in decimal. What does not fit 64 bits becomes two's complement, little endian.
pub(crate) enum Decimal {
    Small(i64),
    Big(Vec<u8>),
}

/// As in Python, which also refuses longer ones: the work grows with the square of the length.
const MAX_DIGITS: usize = 4300;

/// Reads an integer such as `-12` or `12345678901234567890L`.
pub(crate) fn decimal(text: &[u8]) -> Option<Decimal> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let text = text.strip_suffix('L').unwrap_or(text);
    if let Ok(small) = text.parse() {
        return Some(Decimal::Small(small));
    }
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    let mut magnitude: Vec<u8> = Vec::new();
    for digit in digits.chars() {
        let mut carry = digit.to_digit(10)?;
        for byte in &mut magnitude {
            let product = u32::from(*byte) * 10 + carry;
            *byte = product as u8;
            carry = product >> 8;
        }
        if carry > 0 {
            magnitude.push(carry as u8);
        }
    }
    // A byte for the sign, then the two's complement.
    magnitude.push(0);
    if is_negative {
        let mut carry = true;
        for byte in &mut magnitude {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    Some(integer(&magnitude))
}

/// An integer in two's complement, little endian, of any length.
pub(crate) fn integer(bytes: &[u8]) -> Decimal {
    let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let sign = if is_negative { 0xff } else { 0 };
    let mut len = bytes.len();
    // A leading byte that only repeats the sign of the next says nothing.
    while len > 1 && bytes[len - 1] == sign && (bytes[len - 2] ^ sign) & 0x80 == 0 {
        len -= 1;
    }
    if len > 8 {
        return Decimal::Big(bytes[..len].to_vec());
    }
    let mut wide = [sign; 8];
    wide[..len].copy_from_slice(&bytes[..len]);
    Decimal::Small(i64::from_le_bytes(wide))
}

/// A Python 2 string between its quotes, e.g. `'a\x00\n'`.
pub(crate) fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let inner = match text.trim_ascii() {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [first, tail @ ..] = rest {
        if *first != b'\\' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let (code, tail) = tail.split_first()?;
        rest = tail;
        let byte = match code {
            b'\\' | b'\'' | b'"' => *code,
            b'a' => 0x07,
            b'b' => 0x08,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 0x0b,
            b'f' => 0x0c,
            b'r' => b'\r',
            b'x' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                u8::try_from(number(digits, 16)?).ok()?
            }
            b'0'..=b'7' => {
                let n_more =
                    rest.iter().take(2).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                let (more, tail) = rest.split_at(n_more);
                rest = tail;
                number(&[&[*code], more].concat(), 8)? as u8
            }
            // Python keeps the backslash of what is no escape.
            other => {
                bytes.push(b'\\');
                *other
            }
        };
        bytes.push(byte);
    }
    Some(bytes)
}

/// Text in Python's `raw-unicode-escape`: Latin-1, but for `\uXXXX` and `\UXXXXXXXX`.
pub(crate) fn raw_unicode(text: &[u8]) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let n_digits = match (first, tail.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                decoded.push(char::from(*first));
                rest = tail;
                continue;
            }
        };
        let (digits, tail) = tail[1..].split_at_checked(n_digits)?;
        decoded.push(char::from_u32(number(digits, 16)?)?);
        rest = tail;
    }
    Some(decoded)
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    // A sign would pass `from_str_radix`.
    if !digits.iter().all(|digit| char::from(*digit).is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_decimal(text: &str, expected: i128) {
        let wide = match decimal(text.as_bytes()).unwrap() {
            Decimal::Small(small) => i128::from(small),
            Decimal::Big(bytes) => {
                assert!(bytes.len() > 8, "{text} fits 64 bits");
                let sign = if bytes.last().unwrap() & 0x80 == 0 { 0 } else { 0xff };
                let mut wide = [sign; 16];
                wide[..bytes.len()].copy_from_slice(&bytes);
                i128::from_le_bytes(wide)
            }
        };
        assert_eq!(wide, expected, "{text}");
    }

    #[test]
    fn decimals_of_any_size_are_read() {
        for value in [0, 1, -1, 127, 128, -128, -129, i64::MAX, i64::MIN] {
            check_decimal(&value.to_string(), value.into());
            check_decimal(&format!("{value}L"), value.into());
        }
        for value in
            [i128::from(i64::MAX) + 1, i128::from(i64::MIN) - 1, 1 << 80, -(1 << 80), 255 << 64]
        {
            check_decimal(&value.to_string(), value);
        }
        let too_long = "1".repeat(MAX_DIGITS + 1);
        for text in ["", "-", "1.5", "L", "12x", &too_long] {
            assert!(decimal(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn bytes_that_only_repeat_the_sign_are_dropped() {
        let small = |bytes: &[u8]| match integer(bytes) {
            Decimal::Small(small) => Some(small),
            Decimal::Big(_) => None,
        };
        assert_eq!(small(&[]), Some(0));
        assert_eq!(small(&[0xff; 20]), Some(-1));
        assert_eq!(small(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(128));
        assert_eq!(small(&[0, 0, 0, 0, 0, 0, 0, 0x80]), Some(i64::MIN));
        assert_eq!(small(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), None);
    }

    #[test]
    fn quoted_strings_are_unescaped() {
        let check = |text: &str, expected: &[u8]| {
            assert_eq!(quoted(text.as_bytes()).as_deref(), Some(expected), "{text}");
        };
        check(r"'plain'", b"plain");
        check(r#""it's""#, b"it's");
        check(r"'\x00\xff\n\t\\\''", b"\x00\xff\n\t\\'");
        check(r"'\0\101\377'", b"\0A\xff");
        check(r"'\q'", b"\\q");
        for text in ["", "'", "'a", "a'", r"'\'", r"'\x1'", r"'\x+1'", r"'\xgg'"] {
            assert_eq!(quoted(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn raw_unicode_is_latin_1_with_escapes() {
        let check = |text: &[u8], expected: Option<&str>| {
            assert_eq!(raw_unicode(text).as_deref(), expected);
        };
        check(b"caf\xe9", Some("café"));
        check(br"\u20ac \U0001f431 \n", Some("€ 🐱 \\n"));
        check(br"\u20a", None);
        check(br"\ud800", None);
        check(br"\u+123", None);
    }
}
