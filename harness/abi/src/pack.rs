//! The root module of a pack.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RStr, RString, RVec};

use crate::descriptor::Descriptor;
use crate::detector::DetectorBox;
use crate::error::RawResult;
use crate::host::HostBox;

/// Which pack this is.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Eq, Debug)]
pub struct PackInfo {
    /// The crate's name.
    pub name: RString,
    /// The crate's version.
    pub version: RString,
    /// The version of the SDK that it was built with.
    pub sdk_version: RString,
}

/// What a pack exports. Every entry may be called from any thread.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PackRef)))]
#[sabi(missing_field(panic))]
pub struct Pack {
    /// Name and version. Cheap, no side effects.
    pub info: extern "C" fn() -> PackInfo,
    /// Its detectors. Cheap, no side effects.
    pub descriptors: extern "C" fn() -> RawResult<RVec<Descriptor>>,
    /// A detector by id, with its parameters as a JSON object; absent ones take their defaults.
    /// The host outlives the detector.
    #[sabi(last_prefix_field)]
    pub create:
        extern "C" fn(id: RStr<'_>, params: RStr<'_>, host: HostBox) -> RawResult<DetectorBox>,
}

impl RootModule for PackRef {
    abi_stable::declare_root_module_statics! {PackRef}
    const BASE_NAME: &'static str = "oodbench_pack";
    const NAME: &'static str = "oodbench_pack";
    // abi_stable refuses a module whose version is older than the host's. The epoch decides that
    // here, not this crate's version, so the two are tied: `EPOCH.0.0`.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}
