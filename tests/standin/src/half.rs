//! Halves: what the libraries read and write as 16 bits.

/// The number that an IEEE half is.
pub(crate) fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    match exponent {
        0 => {
            let magnitude = fraction as f32 * 2.0_f32.powi(-24);
            f32::from_bits(magnitude.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The nearest IEEE half, ties to even.
pub(crate) fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: adding a power of two rounds to a multiple of the smallest half.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0x3f00_0000) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - 0x3800_0000;
    sign | (rounded >> 13) as u16
}

/// The number that a bfloat16 is.
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even.
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rounds to the 10 bits of fraction that tensor cores keep of a single.
pub(crate) fn to_tf32(value: f32) -> f32 {
    let bits = value.to_bits();
    if bits & 0x7f80_0000 == 0x7f80_0000 {
        return value;
    }
    f32::from_bits((bits + 0x1000) & !0x1fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_there_and_back() {
        for bits in 0..=u16::MAX {
            let value = from_f16(bits);
            if !value.is_nan() {
                assert_eq!(to_f16(value), bits, "{bits:#x} is {value}");
            }
            let value = from_bf16(bits);
            if !value.is_nan() {
                assert_eq!(to_bf16(value), bits, "{bits:#x} is {value}");
            }
        }
    }

    #[test]
    fn ties_go_to_even() {
        assert_eq!(to_f16(1.0 + 2.0_f32.powi(-11)), 0x3c00);
        assert_eq!(to_f16(1.0 + 3.0 * 2.0_f32.powi(-11)), 0x3c02);
        assert_eq!(to_f16(65520.0), 0x7c00);
        assert_eq!(to_bf16(1.0 + 2.0_f32.powi(-8)), 0x3f80);
        assert_eq!(to_bf16(1.0 + 3.0 * 2.0_f32.powi(-8)), 0x3f82);
    }
}
