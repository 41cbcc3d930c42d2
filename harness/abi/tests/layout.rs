//! The layout of every type that crosses the boundary, pinned.
//!
//! The walk begins at the root module, and goes on to whatever it finds in fields, parameters and
//! return types. Of each type it writes down the name, the size, the fields in order, the
//! functions, and for enums the variants; the hash is FNV-1a over those lines. Where a type is
//! defined does not count, and neither does a package's version.

#![cfg(target_pointer_width = "64")]

use oodbench_abi::abi_stable::type_layout::{TLData, TLField, TypeLayout};
use oodbench_abi::abi_stable::{StableAbi, std_types::RResult};
use oodbench_abi::{DetectorBox, EPOCH, HostBox, PackRef, RawError};

/// The epoch and the hash of its layouts.
const PINNED: (u32, u64) = (1, 0x8fbb_dc62_d4ef_4048);

#[test]
fn a_changed_layout_bumps_the_epoch() {
    let types = types();
    let hash = hash(&types);
    let (epoch, pinned) = PINNED;
    assert_eq!(epoch, EPOCH, "bump the epoch here too, and pin `{hash:#018x}`");
    assert_eq!(
        hash,
        pinned,
        "the layout of an ABI type has changed: bump the epoch (`EPOCH` and the version of the root \
         module), then pin `{hash:#018x}`; packs that were built before would misread memory. \
         This is how the types lie now:\n\n{}",
        types.iter().map(|each| each.text.as_str()).collect::<String>()
    );
}

#[test]
fn the_walk_finds_every_type_of_this_crate() {
    let types = types();
    let names: Vec<&str> = types.iter().map(|each| each.layout.name()).collect();
    let ours = [
        "Descriptor",
        "ErrorCode",
        "FitData",
        "ForwardOutputs",
        "Head",
        "LogLevel",
        "NamedTensor",
        "Needs",
        "PackInfo",
        "Param",
        "ParamKind",
        "RawError",
        "ScoreBatch",
        "SplitId",
        "SplitView",
        "TensorView",
    ];
    for name in ours {
        assert!(names.contains(&name), "`{name}` is not among {names:?}");
    }
}

#[test]
fn the_root_module_names_the_epoch() {
    use oodbench_abi::abi_stable::library::RootModule;
    assert_eq!(PackRef::VERSION_STRINGS.version.as_str(), format!("{EPOCH}.0.0"));
}

/// A type that crosses the boundary.
struct Type {
    layout: &'static TypeLayout,
    text: String,
    /// Positions of the types that it names, in order.
    inner: Vec<usize>,
}

/// Every type that can be reached, in the order of the walk.
fn types() -> Vec<Type> {
    let mut found = vec![
        PackRef::LAYOUT,
        DetectorBox::LAYOUT,
        HostBox::LAYOUT,
        <RResult<(), RawError>>::LAYOUT,
    ];
    let mut types = Vec::new();
    while let Some(&layout) = found.get(types.len()) {
        let (text, inner) = describe(layout);
        let inner = inner.into_iter().map(|inner| {
            let place = found.iter().position(|other| *other == inner);
            place.unwrap_or_else(|| {
                found.push(inner);
                found.len() - 1
            })
        });
        let inner = inner.collect();
        types.push(Type { layout, text, inner });
    }
    types
}

/// One number for all layouts. A name says nothing of a type's generic parameters, so each type's
/// hash takes in those of the types that it names, some levels deep.
fn hash(types: &[Type]) -> u64 {
    const LEVELS: usize = 8;
    let mut hashes: Vec<u64> = types.iter().map(|each| fnv1a(&each.text)).collect();
    for _ in 0..LEVELS {
        let next = types.iter().map(|each| {
            let inner: Vec<u64> = each.inner.iter().map(|&i| hashes[i]).collect();
            fnv1a(&format!("{}{inner:?}", each.text))
        });
        hashes = next.collect();
    }
    hashes.sort_unstable();
    fnv1a(&format!("{hashes:?}"))
}

/// A layout as lines, and the layouts that it names.
fn describe(layout: &'static TypeLayout) -> (String, Vec<&'static TypeLayout>) {
    let mut inner = Vec::new();
    let mut text = format!(
        "{} size {} align {} repr {:?} {:?}\n",
        layout.full_type(),
        layout.size(),
        layout.alignment(),
        layout.repr_attr(),
        layout.data_discriminant(),
    );
    match layout.data() {
        TLData::Enum(data) => {
            let variants: Vec<&str> = data.variant_names_iter().collect();
            let counts = data.field_count.as_slice();
            text += &format!("  variants {variants:?} of {counts:?} {:?}\n", data.discriminants);
        }
        TLData::PrefixType(data) => {
            text += &format!("  prefix of {} fields\n", data.first_suffix_field);
        }
        TLData::Primitive(kind) => text += &format!("  {kind:?}\n"),
        _ => {}
    }
    let fields = layout.get_fields().map(|fields| fields.to_vec()).unwrap_or_default();
    for field in fields.into_iter().chain(layout.phantom_fields().to_vec()) {
        describe_field(&field, &mut text, &mut inner);
    }
    (text, inner)
}

fn describe_field(field: &TLField, text: &mut String, inner: &mut Vec<&'static TypeLayout>) {
    *text += &format!("  {}: {}\n", field.name(), field.full_type());
    inner.push(field.layout());
    for function in field.function_range().iter() {
        *text += &format!("    {}\n", function.to_string().trim_end().replace('\n', " "));
        inner.extend(function.param_type_layouts.iter().map(|layout| layout()));
        inner.extend(function.return_type_layout().map(|layout| layout()));
    }
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
