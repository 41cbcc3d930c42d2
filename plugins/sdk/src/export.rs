//! The macro that makes a crate a pack.

/// Exports detectors as a pack. Once in a crate of `crate-type = ["cdylib"]`:
///
/// ```text
/// oodbench_sdk::export_pack!(MaxLogit, MinMaxLogit);
/// ```
///
/// A pack that can compute on more than the CPU may say so, as `plugin inspect` is to show it:
///
/// ```text
/// oodbench_sdk::export_pack!(DiffOod; built_for = "CPU and CUDA 13.0");
/// ```
///
/// The symbols that it emits have fixed names, so two crates that use it cannot be linked into
/// one binary: keep detectors in a library of their own if something else uses them too.
#[macro_export]
macro_rules! export_pack {
    ($($detector:ty),+ ; built_for = $built_for:expr) => {
        $crate::export_pack!($($detector),+);

        /// What the pack computes on, for `oodbench plugin inspect`.
        #[unsafe(no_mangle)]
        pub extern "C" fn oodbench_built_for() -> $crate::__private::abi::abi_stable::std_types::RString {
            $built_for.into()
        }
    };
    ($($detector:ty),+ $(,)?) => {
        #[cfg(panic = "abort")]
        compile_error!("a pack cannot be built with panic = \"abort\": a panic must become an error");

        /// The ABI epoch, which the host reads before anything else.
        #[unsafe(no_mangle)]
        pub static OODBENCH_ABI_EPOCH: u32 = $crate::__private::abi::EPOCH;

        #[allow(non_upper_case_globals, unsafe_code, unused_qualifications, missing_docs)]
        const _: () = {
            use $crate::__private::abi;
            use abi::abi_stable;
            use abi_stable::std_types::{RResult, RStr, RVec};

            extern "C" fn info() -> abi::PackInfo {
                abi::PackInfo {
                    name: env!("CARGO_PKG_NAME").into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    sdk_version: $crate::VERSION.into(),
                }
            }

            extern "C" fn descriptors() -> abi::RawResult<RVec<abi::Descriptor>> {
                $crate::__private::guarded(|| {
                    Ok([$($crate::__private::descriptor::<$detector>()?),+].into_iter().collect())
                })
            }

            extern "C" fn create(
                id: RStr<'_>,
                params: RStr<'_>,
                host: abi::HostBox,
            ) -> abi::RawResult<abi::DetectorBox> {
                $crate::__private::guarded(|| {
                    let (id, params) = (id.as_str(), params.as_str());
                    $(
                        if <$detector as $crate::Detector>::info().id == id {
                            return $crate::__private::create::<$detector>(params, host);
                        }
                    )+
                    Err($crate::Error::new(format!("this pack has no detector `{id}`")))
                })
            }

            fn root() -> abi::PackRef {
                use abi_stable::prefix_type::PrefixTypeTrait;
                abi::Pack { info, descriptors, create }.leak_into_prefix()
            }

            extern "C" fn erased_root() -> abi_stable::library::RootModuleResult {
                abi_stable::library::__call_root_module_loader(root)
            }

            // What `#[export_root_module]` expands to; by hand, because that names
            // `::abi_stable`, which a pack does not depend on.
            // SAFETY: `erased_root` gives the module of the type that the header names.
            #[unsafe(no_mangle)]
            static _1as_0lib_1header_0root_bmodule_bloader: abi_stable::library::LibHeader = unsafe {
                abi_stable::library::LibHeader::from_constructor::<abi::PackRef>(
                    erased_root,
                    abi_stable::library::CheckTypeLayout::Yes,
                )
            };
        };
    };
}
