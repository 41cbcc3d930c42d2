//! From the trait to the ABI and back, with every panic caught on the way.

mod readout;

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::{
    Descriptor, Detector as RawDetector, Detector_TO, DetectorBox, ErrorCode, FitData as RawFit,
    HostBox, Param as RawParam, ParamKind, RawError, RawResult, ScoreBatch, TensorView, extension,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::data::{Batch, FitData};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::{Detector, Info};
use readout::Readout;

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
        Value::Object(map) => map,
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
    if let Some(param) = info
        .params
        .iter()
        .find(|p| p.readout && p.kind.map(ParamKind::without_flags) == Some(ParamKind::ASSET))
    {
        return Err(Error::new(format!(
            "parameter `{}` of `{}` expected a value to be read out with, got a file",
            param.name, info.id
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
    let Info { id, title, family, summary, paper, year, url, needs, random, companion_of, .. } =
        info;
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
    let params: Value = parse(params)?;
    let host = Host::new(host);
    let detector = D::new(parse_value(params.clone())?, host.clone())?;
    let detector = ManuallyDrop::new(detector);
    let readout = Readout::new(params);
    Ok(Detector_TO::from_value(Bridge { detector, host, sizes: None, readout }, TD_Opaque))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(bad_parameter)
}

/// Reads parameters. What is wrong with a value does not say whose it is, so each is read alone
/// once one is refused.
fn parse_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    let refused = match serde_json::from_value(value.clone()) {
        Ok(params) => return Ok(params),
        Err(err) => err.to_string(),
    };
    let mut given = value.as_object().into_iter().flatten();
    let alone = |(name, value): (&String, &Value)| {
        let one = serde_json::Map::from_iter([(name.clone(), value.clone())]);
        let err = serde_json::from_value::<T>(Value::Object(one)).err()?.to_string();
        // Another one, where none may be left out, would fail for that.
        (err == refused).then(|| format!("parameter `{name}`: {err}"))
    };
    Err(bad_parameter(given.find_map(alone).unwrap_or(refused)))
}

fn bad_parameter(err: impl ToString) -> Error {
    Error::with_code(ErrorCode::BAD_PARAMETER, err.to_string())
}

/// A detector behind the ABI.
struct Bridge<D: Detector> {
    detector: ManuallyDrop<D>,
    host: Host,
    /// Of the classifier that the detector was fitted on; unknown before that.
    sizes: Option<Sizes>,
    readout: Readout<D>,
}

/// Columns of logits and features. They are checked here once, so that a detector which keeps
/// nothing of its fit still refuses the outputs of another classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    n_classes: usize,
    n_features: usize,
}

impl Sizes {
    /// Bytes that stand before a detector's own state.
    const LEN: usize = 16;

    fn check(self, logits: TensorView<'_>, features: TensorView<'_>) -> Result<()> {
        for (view, what, columns) in
            [(logits, "logits", self.n_classes), (features, "features", self.n_features)]
        {
            let shape = view.shape.as_slice();
            if !view.is_absent() && shape.get(1) != Some(&columns) {
                return Err(Error::input(format!("{what} expected [n, {columns}], got {shape:?}")));
            }
        }
        Ok(())
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let (classes, features) = (self.n_classes as u64, self.n_features as u64);
        (u128::from(classes) | u128::from(features) << 64).to_le_bytes()
    }

    /// The sizes in front of a state, and the rest of it.
    fn split(state: &[u8]) -> Result<(Self, &[u8])> {
        let sizes = state.split_first_chunk().and_then(|(bytes, rest)| {
            let both = u128::from_le_bytes(*bytes);
            let n_classes = usize::try_from(both as u64).ok()?;
            let n_features = usize::try_from((both >> 64) as u64).ok()?;
            Some((Self { n_classes, n_features }, rest))
        });
        sizes.ok_or_else(|| Error::input("the saved state is cut off"))
    }
}

impl<D: Detector> Bridge<D> {
    fn fit(&mut self, data: RawFit<'_>) -> Result<()> {
        let sizes = Sizes { n_classes: data.n_classes, n_features: data.n_features };
        let splits = [Some(data.train), Some(data.val), data.val_ood.into_option()];
        for split in splits.into_iter().flatten() {
            sizes.check(split.logits, split.features)?;
        }
        self.detector.fit(&FitData::new(data))?;
        self.fitted(sizes);
        Ok(())
    }

    fn fitted(&mut self, sizes: Sizes) {
        self.sizes = Some(sizes);
        self.readout.reset();
    }

    fn score(&mut self, batch: ScoreBatch<'_>, out: &mut [f32]) -> Result<()> {
        let expected = batch.len.saturating_mul(self.readout.n_rows());
        if out.len() != expected {
            let got = out.len();
            return Err(Error::input(format!("scores expected room for {expected}, got {got}")));
        }
        if let Some(sizes) = self.sizes {
            sizes.check(batch.logits, batch.features)?;
        }
        let batch = Batch::new(batch)?;
        if self.sizes.is_some() {
            self.readout.check_own(&self.detector)?;
        }
        match self.readout.variants() {
            // Rows without columns are more trouble to each detector than they are worth.
            Some(_) if batch.is_empty() => Ok(()),
            Some(variants) => self.detector.score_variants(&batch, variants, out),
            None => self.detector.score(&batch, out),
        }
    }

    fn save_state(&self) -> Result<Vec<u8>> {
        let Some(state) = self.detector.save_state()? else {
            return Err(Error::unsupported("this detector keeps no state"));
        };
        let sizes = self.sizes.ok_or_else(|| Error::new("the detector is not fitted"))?;
        Ok([&sizes.to_bytes()[..], &state].concat())
    }

    fn load_state(&mut self, state: &[u8]) -> Result<()> {
        let (sizes, state) = Sizes::split(state)?;
        self.detector.load_state(state)?;
        self.fitted(sizes);
        Ok(())
    }

    fn set_variants(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        if self.sizes.is_none() {
            return Err(Error::new("the detector is not fitted"));
        }
        Ok(serde_json::to_vec(&self.readout.set_variants(&self.detector, input)?)?)
    }
}

impl<D: Detector> RawDetector for Bridge<D> {
    fn fit(&mut self, data: RawFit<'_>) -> RawResult<()> {
        guarded(|| Bridge::fit(self, data))
    }

    fn score(&mut self, batch: ScoreBatch<'_>, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        guarded(|| Bridge::score(self, batch, out.as_mut_slice()))
    }

    fn extension(&mut self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        guarded(|| match id.as_str() {
            extension::SAVE_STATE => self.save_state().map(RVec::from),
            extension::LOAD_STATE => self.load_state(input.as_slice()).map(|()| RVec::new()),
            extension::VARIANTS => self.set_variants(input.as_slice()).map(RVec::from),
            other => Err(Error::unsupported(format!("unknown extension `{other}`"))),
        })
    }
}

impl<D: Detector> Drop for Bridge<D> {
    fn drop(&mut self) {
        // A panic in a destructor must not cross the boundary either. The scores are out by then,
        // so it is a warning.
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the detector is dropped here alone, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.detector) }
        }));
        if let Err(panic) = dropped {
            let id = D::info().id;
            self.host
                .warn(&format!("`{id}` panicked when it was dropped: {}", panic_text(&*panic)));
        }
    }
}

#[cfg(test)]
mod tests;
