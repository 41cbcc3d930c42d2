//! PTX, translated to C one kernel at a time.

mod emit;
mod lex;
mod parse;
mod scan;
#[cfg(test)]
mod tests;

use crate::api::{Outcome, refusal};
use crate::driver::codes::{INVALID_PTX, NOT_FOUND, NOT_SUPPORTED};
pub(crate) use emit::Translation;

/// A kernel's declared interface.
#[derive(Debug, Clone)]
pub(crate) struct Signature {
    /// Offset, bytes and alignment of each parameter.
    pub(crate) params: Vec<(usize, usize, usize)>,
    pub(crate) param_bytes: usize,
    pub(crate) max_threads: Option<u64>,
    pub(crate) required: Option<[u32; 3]>,
}

/// A variable of a module and its first content.
#[derive(Debug, Clone)]
pub(crate) struct Global {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Where addresses of other variables go: offset, name, and what is added.
    pub(crate) addresses: Vec<(usize, String, i64)>,
}

/// The variables of a module, in the order in which translations number them.
///
/// # Errors
/// The text is no PTX for this device.
pub(crate) fn globals(text: &str) -> Outcome<Vec<Global>> {
    let outline = scan::outline(text)?;
    let known = ["sm_90", "sm_90a", "sm_80", "sm_86", "sm_75", "sm_70", "sm_61", "sm_52"];
    if !known.contains(&outline.target.as_str()) {
        let line = format!("PTX for `{}` on a device of capability 9.0", outline.target);
        return Err(refusal(INVALID_PTX, line));
    }
    let placed = outline.variables.iter().filter(|variable| variable.space != "shared");
    let globals = placed.map(|variable| {
        let mut bytes = vec![0_u8; variable.len.max(1)];
        let mut addresses = Vec::new();
        for (at, value) in variable.values.iter().enumerate() {
            let start = at * variable.width;
            match value {
                scan::Value::Bits(bits) => {
                    let content = &bits.to_le_bytes()[..variable.width.min(8)];
                    let to = bytes.get_mut(start..start + content.len());
                    let to = to.ok_or_else(|| {
                        refusal(
                            INVALID_PTX,
                            format!("PTX: `{}` has too many values", variable.name),
                        )
                    })?;
                    to.copy_from_slice(content);
                }
                scan::Value::Address(name, offset) => {
                    addresses.push((start, name.clone(), *offset));
                }
            }
        }
        Ok(Global { name: variable.name.clone(), bytes, addresses })
    });
    globals.collect()
}

/// The kernels of a module.
///
/// # Errors
/// The text is no PTX.
pub(crate) fn signatures(text: &str) -> Outcome<Vec<(String, Signature)>> {
    let outline = scan::outline(text)?;
    let kernels = outline.callables.iter().filter(|callable| callable.is_kernel);
    let signed = kernels.map(|kernel| {
        let (offsets, param_bytes) = emit::param_layout(&kernel.params);
        let params = kernel.params.iter().zip(offsets);
        let signature = Signature {
            params: params.map(|(param, offset)| (offset, param.len, param.align)).collect(),
            param_bytes,
            max_threads: kernel.max_threads,
            required: kernel.required,
        };
        (kernel.name.clone(), signature)
    });
    Ok(signed.collect())
}

/// Translates a kernel.
///
/// # Errors
/// There is none of the name; it uses what is not translated.
pub(crate) fn translate(text: &str, name: &str) -> Outcome<Translation> {
    let outline = scan::outline(text)?;
    let mut kernels = outline.callables.iter();
    let kernel = kernels.find(|callable| callable.is_kernel && callable.name == name);
    let kernel = kernel.ok_or_else(|| refusal(NOT_FOUND, format!("no kernel `{name}`")))?;
    if kernel.body.is_none() {
        return Err(refusal(NOT_SUPPORTED, format!("kernel `{name}` has no body")));
    }
    emit::translate(&outline, kernel)
}
