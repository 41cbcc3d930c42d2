//! What a pack says about its detectors, without doing anything.

use abi_stable::StableAbi;
use abi_stable::std_types::{RString, RVec};
use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, RawError};

/// What a detector needs from the host, as a set of flags. Nothing else is handed to it.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Needs(pub u64);

impl Needs {
    /// Nothing but the number of images.
    pub const NONE: Self = Self(0);
    /// The classifier's logits.
    pub const LOGITS: Self = Self(1);
    /// The input of the classifier's last linear layer.
    pub const FEATURES: Self = Self(1 << 1);
    /// Classes of the training and validation images.
    pub const LABELS: Self = Self(1 << 2);
    /// Weight and bias of the last linear layer ([`crate::Host::head`]).
    pub const HEAD: Self = Self(1 << 3);
    /// The images themselves.
    pub const IMAGES: Self = Self(1 << 4);
    /// Named activations of the classifier ([`crate::Host::layers`]).
    pub const LAYERS: Self = Self(1 << 5);
    /// Vector-Jacobian products with respect to the input ([`crate::Host::vjp`]).
    pub const GRADIENT: Self = Self(1 << 6);
    /// Running the classifier on images of the detector's own ([`crate::Host::forward`]).
    pub const FORWARD: Self = Self(1 << 7);
    /// Out-of-distribution validation images during `fit`.
    pub const VAL_OOD: Self = Self(1 << 8);
    /// Files named in the parameters ([`crate::Host::asset`]).
    pub const ASSETS: Self = Self(1 << 9);
    /// Training images' logits, features or images during `fit`, as far as asked for.
    pub const TRAIN: Self = Self(1 << 10);
    /// Validation images' logits, features or images during `fit`, as far as asked for.
    pub const VAL: Self = Self(1 << 11);

    /// Every flag with its name.
    pub const NAMES: [(Self, &'static str); 12] = [
        (Self::LOGITS, "logits"),
        (Self::FEATURES, "features"),
        (Self::LABELS, "labels"),
        (Self::HEAD, "head"),
        (Self::IMAGES, "images"),
        (Self::LAYERS, "layers"),
        (Self::GRADIENT, "gradient"),
        (Self::FORWARD, "forward"),
        (Self::VAL_OOD, "val-ood"),
        (Self::ASSETS, "assets"),
        (Self::TRAIN, "train"),
        (Self::VAL, "val"),
    ];

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the flags that are set; `unknown` for one of a later host.
    pub fn names(self) -> Vec<&'static str> {
        let known = Self::NAMES.iter().fold(Self::NONE, |all, (flag, _)| all.and(*flag));
        let set = Self::NAMES.iter().filter(|(flag, _)| self.contains(*flag));
        let mut names: Vec<&str> = set.map(|(_, name)| *name).collect();
        if self.0 & !known.0 != 0 {
            names.push("unknown");
        }
        names
    }
}

/// The type of a parameter, in the lower half, and what else the host should know of it, as flags
/// in the upper half.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ParamKind(pub u32);

impl ParamKind {
    /// A whole number.
    pub const INTEGER: Self = Self(0);
    /// A number.
    pub const NUMBER: Self = Self(1);
    /// `true` or `false`.
    pub const BOOLEAN: Self = Self(2);
    /// A string.
    pub const TEXT: Self = Self(3);
    /// A list of values.
    pub const LIST: Self = Self(4);
    /// A file. The host resolves the name, hashes the content, and gives the path by
    /// [`crate::Host::asset`] with the parameter's name.
    pub const ASSET: Self = Self(5);

    /// A flag: the parameter only chooses how a score is read out of what `fit` and the costly
    /// part of `score` compute. `fit` does not look at it, and a fitted state does not depend on
    /// it. A detector with such a parameter offers [`crate::extension::VARIANTS`]. No file has it.
    pub const READOUT: Self = Self(1 << 16);

    /// A flag on [`ParamKind::ASSET`]: the parameter is a list of files, any number of them. The
    /// host gives the path of the first under `NAME.0`, of the second under `NAME.1`, and so on.
    pub const MANY: Self = Self(1 << 17);

    /// A flag on [`ParamKind::INTEGER`]: the text `auto` is a value too, for which the detector finds
    /// a number itself.
    pub const AUTO: Self = Self(1 << 18);

    /// Both together: a type and flags.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The type without flags.
    #[must_use]
    pub const fn without_flags(self) -> Self {
        Self(self.0 & 0xffff)
    }

    /// Whether the flag [`ParamKind::READOUT`] is set.
    pub const fn is_readout(self) -> bool {
        self.0 & Self::READOUT.0 != 0
    }

    /// Whether the flag [`ParamKind::MANY`] is set.
    pub const fn is_many(self) -> bool {
        self.0 & Self::MANY.0 != 0
    }

    /// Whether the flag [`ParamKind::AUTO`] is set.
    pub const fn is_auto(self) -> bool {
        self.0 & Self::AUTO.0 != 0
    }

    /// How the type is called in help texts.
    pub fn name(self) -> &'static str {
        match self.without_flags() {
            Self::INTEGER if self.is_auto() => "integer or `auto`",
            Self::INTEGER => "integer",
            Self::NUMBER => "number",
            Self::BOOLEAN => "boolean",
            Self::TEXT => "text",
            Self::LIST => "list",
            Self::ASSET if self.is_many() => "list of files",
            Self::ASSET => "file",
            _ => "unknown",
        }
    }
}

/// Why a set of parameters cannot be read out of what was fitted: an entry of the answer to
/// [`crate::extension::VARIANTS`], as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VariantFault {
    /// An [`crate::ErrorCode`].
    pub code: u32,
    /// One line.
    pub message: String,
}

impl From<VariantFault> for RawError {
    fn from(fault: VariantFault) -> Self {
        Self::new(ErrorCode(fault.code), fault.message)
    }
}

impl From<RawError> for VariantFault {
    fn from(error: RawError) -> Self {
        Self { code: error.code.0, message: error.message.into() }
    }
}

/// One parameter of a detector.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Debug)]
pub struct Param {
    /// Name, as it is typed in `--set detector.name=value`.
    pub name: RString,
    /// Type and flags.
    pub kind: ParamKind,
    /// Default as JSON; `null` where the user or the benchmark must say.
    pub default: RString,
    /// Values as JSON that a parameter search tries; may be empty.
    pub sweep: RVec<RString>,
    /// What it means, one line.
    pub doc: RString,
    /// Where default and sweep come from: a paper, OpenOOD, a measurement.
    pub source: RString,
}

/// Everything about a detector that is known without running it. Cheap and pure: building it
/// reads no file and computes nothing.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Debug)]
pub struct Descriptor {
    /// Short name, unique among all packs: `knn`.
    pub id: RString,
    /// Full name: `k nearest neighbours`.
    pub title: RString,
    /// What it reads off: `logits`, `features`, `shaping`, `distance`, `gradient`, `generative` …
    pub family: RString,
    /// One sentence: the idea.
    pub summary: RString,
    /// Authors and title.
    pub paper: RString,
    /// Year of the paper.
    pub year: u32,
    /// Where the paper is.
    pub url: RString,
    /// What it needs.
    pub needs: Needs,
    /// Its parameters.
    pub params: RVec<Param>,
    /// Whether the same input and seed always give the same scores.
    pub deterministic: bool,
    /// The training method that the classifier must come from; empty for post-hoc detectors.
    pub companion_of: RString,
    /// A worked example as JSON, which the conformance check runs; see `oodbench-sdk`.
    pub example: RString,
}
