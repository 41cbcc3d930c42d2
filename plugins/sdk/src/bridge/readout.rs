//! The parameters that a detector's scores are read out with: its own, or those of its variants.

use oodbench_abi::{RawError, VariantFault};
use serde_json::{Map, Value};

use super::{parse, parse_value};
use crate::Detector;
use crate::error::{Error, Result};

/// What is read out at present.
pub(super) struct Readout<D: Detector> {
    /// The detector's own parameters, as they were given.
    own: Value,
    /// Whether the detector has accepted its own parameters for what it is fitted on.
    own_is_checked: bool,
    /// Empty where the own parameters hold.
    variants: Vec<D::Params>,
}

impl<D: Detector> Readout<D> {
    pub(super) fn new(own: Value) -> Self {
        Self { own, own_is_checked: false, variants: Vec::new() }
    }

    /// What was accepted for an earlier fit counts no more.
    pub(super) fn reset(&mut self) {
        self.own_is_checked = false;
        self.variants.clear();
    }

    /// How many rows of scores there are.
    pub(super) fn n_rows(&self) -> usize {
        self.variants.len().max(1)
    }

    /// `None` where the detector's own parameters hold.
    pub(super) fn variants(&self) -> Option<&[D::Params]> {
        (!self.variants.is_empty()).then_some(&self.variants)
    }

    /// Asks the detector, once after each fit, whether its own parameters go with the data.
    pub(super) fn check_own(&mut self, detector: &D) -> Result<()> {
        if self.variants.is_empty() && !self.own_is_checked {
            detector.check_readout(&parse_value(self.own.clone())?)?;
            self.own_is_checked = true;
        }
        Ok(())
    }

    /// From now on the scores for these parameters, unless the answer names a fault.
    ///
    /// # Errors
    /// A detector that has no readout; variants that differ in anything else.
    pub(super) fn set_variants(
        &mut self,
        detector: &D,
        input: &[u8],
    ) -> Result<Vec<Option<VariantFault>>> {
        let names: Vec<&str> =
            D::info().params.iter().filter(|param| param.readout).map(|param| param.name).collect();
        if names.is_empty() {
            return Err(Error::unsupported("this detector scores one set of parameters at a time"));
        }
        let text = std::str::from_utf8(input).map_err(super::bad_parameter)?;
        let given: Vec<Value> = parse(text)?;
        let own = fixed(&parse_value::<D::Params>(self.own.clone())?, &names)?;
        let (mut variants, mut faults) = (Vec::new(), Vec::new());
        for params in given {
            let params: D::Params = parse_value(params)?;
            let other = fixed(&params, &names)?;
            if let Some(name) = own.keys().find(|name| own[*name] != other[*name]) {
                return Err(Error::parameter(name, &format!("`{}`", own[name]), &other[name]));
            }
            let fault = detector.check_readout(&params).err();
            faults.push(fault.map(|error| RawError::from(error).into()));
            variants.push(params);
        }
        if faults.iter().all(Option::is_none) {
            self.variants = variants;
        }
        Ok(faults)
    }
}

/// All parameters but those that are read out with.
fn fixed<P: serde::Serialize>(params: &P, readout: &[&str]) -> Result<Map<String, Value>> {
    match serde_json::to_value(params)? {
        Value::Object(mut map) => {
            map.retain(|name, _| !readout.contains(&name.as_str()));
            Ok(map)
        }
        other => Err(Error::new(format!("parameters expected a struct, got `{other}`"))),
    }
}
