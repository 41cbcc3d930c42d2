//! Numbers as bytes, for [extensions](crate::extension) that carry more than text.
//!
//! A message is the length of its header in bytes (`u32`, little endian), the header (JSON), and
//! numbers (`f32`, little endian) to the end, one array after the other. How many numbers belong to
//! which array follows from the header.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Mean and standard deviation of each channel, by which a classifier normalises images in
/// `[0, 1]`: `(x - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Red, green, blue.
    pub mean: [f32; 3],
    /// Red, green, blue; positive.
    pub std: [f32; 3],
}

/// The classifier's layers by what they are, each list in order of execution. A layer may be in
/// more than one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerGroups {
    /// The parts that the network consists of, `[n, channels, height, width]`: everything behind
    /// such a layer follows from its output alone, so that the network can go on from there.
    pub stages: Vec<String>,
    /// What a hook on each convolution and each ReLU module would see, `[n, channels, height,
    /// width]`.
    pub maps: Vec<String>,
    /// What further heads give, `[n, columns]`.
    pub heads: Vec<String>,
}

/// The header of [`FORWARD_FROM`](crate::extension::FORWARD_FROM).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardFrom {
    /// The stage.
    pub at: String,
    /// Of the activations.
    pub shape: Vec<usize>,
}

/// The header of [`FORWARD_WITH`](crate::extension::FORWARD_WITH).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardWith {
    /// The parameter that names the file; `NAME.I` for file `I` of a list.
    pub asset: String,
    /// Of the images.
    pub shape: Vec<usize>,
}

/// The header of what a classifier gives: logits `[n, n_classes]`, then features
/// `[n, n_features]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardSizes {
    /// Number of images.
    pub n: usize,
    /// Columns of the logits.
    pub n_classes: usize,
    /// Columns of the features.
    pub n_features: usize,
}

/// A message of this header and these arrays.
///
/// # Panics
///
/// When the header is no JSON or longer than 4 GiB.
pub fn encode(header: &impl Serialize, arrays: &[&[f32]]) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("headers are plain structs");
    let length = u32::try_from(header.len()).expect("headers are short");
    let n_numbers: usize = arrays.iter().map(|array| array.len()).sum();
    let mut message = Vec::with_capacity(4 + header.len() + 4 * n_numbers);
    message.extend(length.to_le_bytes());
    message.extend(header);
    for array in arrays {
        message.extend(array.iter().flat_map(|number| number.to_le_bytes()));
    }
    message
}

/// Header and numbers of a message.
///
/// # Errors
/// One line, where the bytes are no such message.
pub fn decode<H: DeserializeOwned>(message: &[u8]) -> Result<(H, Vec<f32>), String> {
    let cut_off = || format!("a message of {} bytes is cut off", message.len());
    let (length, rest) = message.split_first_chunk::<4>().ok_or_else(cut_off)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (header, numbers) = rest.split_at_checked(length).ok_or_else(cut_off)?;
    let header = serde_json::from_slice(header).map_err(|err| format!("header: {err}"))?;
    let (numbers, []) = numbers.as_chunks::<4>() else { return Err(cut_off()) };
    Ok((header, numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: ForwardSizes = ForwardSizes { n: 2, n_classes: 1, n_features: 0 };

    #[test]
    fn numbers_arrive_as_they_were() {
        let numbers = [f32::MIN_POSITIVE, -0.0, f32::MAX, 1.0 / 3.0];
        let message = encode(&SIZES, &[&numbers[..1], &[], &numbers[1..]]);
        let (header, decoded) = decode::<ForwardSizes>(&message).unwrap();
        assert_eq!(header, SIZES);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded), bits(&numbers));
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused() {
        let message = encode(&SIZES, &[&[1.0]]);
        for length in 0..message.len() - 4 {
            assert!(decode::<ForwardSizes>(&message[..length]).is_err(), "{length}");
        }
        for length in message.len() - 3..message.len() {
            let error = decode::<ForwardSizes>(&message[..length]).unwrap_err();
            assert_eq!(error, format!("a message of {length} bytes is cut off"));
        }
        let error = decode::<ForwardSizes>(&encode(&"text", &[])).unwrap_err();
        assert!(error.starts_with("header: invalid type"), "{error}");
        assert!(decode::<ForwardSizes>(&[0xff; 16]).is_err());
    }
}
