//! From the trait to the ABI and back, with every panic caught on the way.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::{
    Descriptor, Detector as RawDetector, Detector_TO, DetectorBox, ErrorCode, FitData as RawFit,
    HostBox, Param as RawParam, RawError, RawResult, ScoreBatch, extension,
};

use crate::data::{Batch, FitData};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::{Detector, Info};

/// Runs `f`; a panic becomes an error, because one that crossed the boundary would end the host.
pub fn guarded<T>(f: impl FnOnce() -> Result<T>) -> RawResult<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => RResult::ROk(value),
        Ok(Err(err)) => RResult::RErr(err.into()),
        Err(panic) => RResult::RErr(RawError::new(ErrorCode::PANICKED, panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a value that is no text".to_owned())
}

/// The descriptor of a detector, with defaults taken from its parameters.
///
/// # Errors
/// An info that does not match the parameters.
pub fn descriptor<D: Detector>() -> Result<Descriptor> {
    let info = D::info();
    let defaults = match serde_json::to_value(D::Params::default())? {
        serde_json::Value::Object(map) => map,
        other => {
            return Err(Error::new(format!(
                "parameters of `{}` expected a struct, got `{other}`",
                info.id
            )));
        }
    };
    let described: Vec<&str> = info.params.iter().map(|param| param.name).collect();
    let fields: Vec<&str> = defaults.keys().map(String::as_str).collect();
    if described != fields {
        return Err(Error::new(format!(
            "`{}` describes the parameters {described:?}, but its fields are {fields:?}",
            info.id
        )));
    }
    let params = info.params.iter().zip(defaults.values()).map(|(param, default)| RawParam {
        name: param.name.into(),
        kind: param.kind_of(default),
        default: default.to_string().into(),
        sweep: param.sweep.iter().map(|value| RString::from(value.to_string())).collect(),
        doc: param.doc.into(),
        source: param.source.into(),
    });
    let params: RVec<RawParam> = params.collect();
    let Info { id, title, family, summary, paper, year, url, needs, random, companion_of, .. } = info;
    Ok(Descriptor {
        id: id.into(),
        title: title.into(),
        family: family.into(),
        summary: summary.into(),
        paper: paper.into(),
        year,
        url: url.into(),
        needs,
        params,
        deterministic: !random,
        companion_of: companion_of.into(),
        example: serde_json::to_string(&info.example.0)?.into(),
    })
}

/// Makes a detector from parameters as JSON.
///
/// # Errors
/// Parameters that are unknown, of another type, or out of range.
pub fn create<D: Detector>(params: &str, host: HostBox) -> Result<DetectorBox> {
    let params: D::Params = serde_json::from_str(params)
        .map_err(|err| Error::with_code(ErrorCode::BAD_PARAMETER, err.to_string()))?;
    let detector = D::new(params, Host::new(host))?;
    let bridge = Bridge { detector: ManuallyDrop::new(detector) };
    Ok(Detector_TO::from_value(bridge, TD_Opaque))
}

/// A detector behind the ABI.
struct Bridge<D: Detector> {
    detector: ManuallyDrop<D>,
}

impl<D: Detector> RawDetector for Bridge<D> {
    fn fit(&mut self, data: RawFit<'_>) -> RawResult<()> {
        guarded(|| self.detector.fit(&FitData::new(data)))
    }

    fn score(&mut self, batch: ScoreBatch<'_>, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        guarded(|| {
            if out.len() != batch.len {
                return Err(Error::input(format!(
                    "scores expected room for {}, got {}",
                    batch.len,
                    out.len()
                )));
            }
            self.detector.score(&Batch::new(batch)?, out.as_mut_slice())
        })
    }

    fn extension(&mut self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        let unsupported = |what: &str| Error::with_code(ErrorCode::UNSUPPORTED, what);
        guarded(|| match id.as_str() {
            extension::SAVE_STATE => match self.detector.save_state()? {
                Some(state) => Ok(state.into()),
                None => Err(unsupported("this detector keeps no state")),
            },
            extension::LOAD_STATE => {
                self.detector.load_state(input.as_slice())?;
                Ok(RVec::new())
            }
            other => Err(unsupported(&format!("unknown extension `{other}`"))),
        })
    }
}

impl<D: Detector> Drop for Bridge<D> {
    fn drop(&mut self) {
        // A panic in a destructor must not cross the boundary either; there is nobody to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the detector is dropped here alone, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.detector) }
        }));
    }
}
