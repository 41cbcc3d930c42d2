//! What there is to run on: asked of the driver before anything else is, so that a machine without
//! a GPU gets a clear answer and not a failed call from the middle of a computation.

use std::fmt;

use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};

/// A GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Which one of those that the driver shows to this process.
    pub ordinal: usize,
    /// For example `NVIDIA H200`.
    pub name: String,
    /// Major and minor: 9 and 0 for Hopper.
    pub capability: (u32, u32),
    /// The newest CUDA that the driver knows.
    pub driver: CudaVersion,
    /// All of its memory.
    pub bytes: u64,
}

/// A version of CUDA, as NVIDIA counts: 13000 is 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(pub u32);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The CUDA that this program was built with. Its kernels are PTX, which older drivers refuse.
pub const BUILT_WITH: CudaVersion = CudaVersion(sys::CUDA_VERSION);

/// Why a GPU cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is no `libcuda.so.1`, or only the toolkit's stub of it.
    Driver,
    /// The driver is there and does not start; what it says.
    Init(String),
    /// It knows an older CUDA than this program was built with.
    OldDriver(CudaVersion),
    /// The driver shows no device at all.
    Device,
    /// It shows so many, and not the one that was named.
    Ordinal(usize),
    /// The kernels were compiled for other cards than this one.
    Capability { name: String, capability: (u32, u32) },
}

/// Looks for a GPU. No context is made, and no memory taken.
///
/// # Errors
/// See [`Absent`].
pub fn probe(ordinal: usize) -> Result<Gpu, Absent> {
    let driver = driver_version()?;
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Absent::Device),
        Err(error) => return Err(Absent::Init(format!("{:?}", error.0))),
    }
    let said = |error: DriverError| Absent::Init(format!("{:?}", error.0));
    let count = usize::try_from(result::device::get_count().map_err(said)?).unwrap_or(0);
    if count == 0 {
        return Err(Absent::Device);
    }
    if ordinal >= count {
        return Err(Absent::Ordinal(count));
    }
    if driver < BUILT_WITH {
        return Err(Absent::OldDriver(driver));
    }
    let device = i32::try_from(ordinal).map_err(|_| Absent::Ordinal(count))?;
    let device = result::device::get(device).map_err(said)?;
    let attribute = |which| {
        // SAFETY: the driver has just given the device, and writes one integer.
        let value = unsafe { result::device::get_attribute(device, which) };
        value.map(|value| u32::try_from(value).unwrap_or(0)).map_err(said)
    };
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let capability = (attribute(MAJOR)?, attribute(MINOR)?);
    let name = result::device::get_name(device).map_err(said)?;
    if !runs_on(built_for(), capability) {
        return Err(Absent::Capability { name, capability });
    }
    // SAFETY: the driver has just given the device, and writes one size.
    let bytes = unsafe { result::device::total_mem(device) }.map_err(said)? as u64;
    Ok(Gpu { ordinal, name, capability, driver, bytes })
}

/// The newest CUDA that the driver knows. It answers before it is started, and without a device.
fn driver_version() -> Result<CudaVersion, Absent> {
    let mut version = 0;
    // SAFETY: the call writes one integer. Where the library is absent, a build with lazy linking
    // gets an error code, and nothing is written.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    match (status, u32::try_from(version)) {
        (sys::CUresult::CUDA_SUCCESS, Ok(version)) if version > 0 => Ok(CudaVersion(version)),
        _ => Err(Absent::Driver),
    }
}

/// What the kernels were compiled for, as PTX names it: `sm_90a`.
#[must_use]
pub fn built_for() -> &'static str {
    target(crate::ptx::SAMPLER)
}

/// The target of PTX.
fn target(ptx: &str) -> &str {
    let line = ptx.lines().find_map(|line| line.trim_start().strip_prefix(".target "));
    line.and_then(|line| line.split([',', ' ']).next()).unwrap_or("").trim()
}

/// Whether PTX for a target runs on a card. A plain target does on every later one, one with `f` on
/// those of its family, and one with `a` on no other than its own.
fn runs_on(target: &str, capability: (u32, u32)) -> bool {
    let Some(of) = target.strip_prefix("sm_") else { return true };
    let digits = of.trim_end_matches(char::is_alphabetic);
    let Ok(least) = digits.parse::<u32>() else { return true };
    let has = 10 * capability.0 + capability.1;
    match &of[digits.len()..] {
        "a" => has == least,
        "f" => has >= least && has / 10 == least / 10,
        _ => has >= least,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_do() {
        assert_eq!(CudaVersion(13000).to_string(), "13.0");
        assert_eq!(CudaVersion(12080).to_string(), "12.8");
    }

    #[test]
    fn the_target_is_read_off_the_kernels() {
        assert_eq!(target("//\n.version 9.0\n.target sm_90a\n.address_size 64\n"), "sm_90a");
        assert_eq!(target(".target sm_80, debug\n"), "sm_80");
        assert!(built_for().starts_with("sm_"), "{}", built_for());
    }

    #[test]
    fn a_target_decides_which_cards_run_it() {
        let check = |target, capability, expected| {
            assert_eq!(runs_on(target, capability), expected, "{target} on {capability:?}");
        };
        check("sm_90a", (9, 0), true);
        check("sm_90a", (10, 0), false);
        check("sm_90a", (8, 6), false);
        check("sm_80", (9, 0), true);
        check("sm_80", (7, 5), false);
        check("sm_100f", (10, 3), true);
        check("sm_100f", (12, 0), false);
    }
}
