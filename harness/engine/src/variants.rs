//! Several sets of parameters that one detector scores in one pass: the host's side of
//! [`oodbench_abi::extension::VARIANTS`].

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RStr};
use oodbench_abi::{DetectorBox, ErrorCode, RawError, VariantFault, extension};
use serde_json::{Map, Value};

/// Has a fitted detector score these sets of parameters from now on, unless one of them has a
/// fault; none for its own.
///
/// # Errors
/// What the detector says: that it knows no variants, or that these are none.
pub(crate) fn set_variants(
    detector: &mut DetectorBox,
    variants: &[Map<String, Value>],
) -> Result<Vec<Option<VariantFault>>, RawError> {
    let input = serde_json::to_vec(variants).expect("parameters are plain data");
    let id = RStr::from(extension::VARIANTS);
    let answer = match detector.extension(id, RSlice::from_slice(&input)) {
        RResult::ROk(answer) => answer,
        RResult::RErr(error) => return Err(error),
    };
    let faults: Result<Vec<Option<VariantFault>>, _> = serde_json::from_slice(&answer);
    match faults {
        Ok(faults) if faults.len() == variants.len() => Ok(faults),
        _ => {
            let expected = variants.len();
            let message = format!("answer to variants expected {expected} faults or nulls");
            Err(RawError::new(ErrorCode::FAILED, message))
        }
    }
}
