//! What a detector says about itself.

use oodbench_abi::{Needs, ParamKind};
use serde_json::Value;

use crate::example::Example;

/// Everything about a detector that is known without running it.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Short name, unique among all packs: `knn`.
    pub id: &'static str,
    /// Full name.
    pub title: &'static str,
    /// What it reads off: `logits`, `features`, `shaping`, `distance`, `gradient`, `generative`.
    pub family: &'static str,
    /// One sentence: the idea, with the score.
    pub summary: &'static str,
    /// Authors and title.
    pub paper: &'static str,
    /// Year of the paper.
    pub year: u32,
    /// Where the paper is.
    pub url: &'static str,
    /// What it needs from the host.
    pub needs: Needs,
    /// A description of each field of the parameters, in their order.
    pub params: Vec<Param>,
    /// Whether scores differ from run to run even with the same seed; say no if you can.
    pub random: bool,
    /// The training method that the classifier must come from; empty for post-hoc detectors.
    pub companion_of: &'static str,
    /// A worked example, which the conformance check runs.
    pub example: Example,
}

/// The description of one parameter. Its default is that of the parameters' `Default`, its type
/// that of the default.
#[derive(Clone, Debug)]
pub struct Param {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) source: &'static str,
    pub(crate) sweep: Vec<Value>,
    pub(crate) kind: Option<ParamKind>,
    pub(crate) readout: bool,
    pub(crate) auto: bool,
}

impl Param {
    /// A parameter, what it means, and where its default comes from.
    pub fn new(name: &'static str, doc: &'static str, source: &'static str) -> Self {
        Self { name, doc, source, sweep: Vec::new(), kind: None, readout: false, auto: false }
    }

    /// The values that a parameter search tries.
    #[must_use]
    pub fn sweep<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.sweep = values.into_iter().map(Into::into).collect();
        self
    }

    /// Says that the parameter only chooses how a score is read out of what
    /// [`crate::Detector::fit`] and the costly part of [`crate::Detector::score`] compute, so that
    /// [`crate::Detector::score_variants`] gets the scores for many of its values at the cost of
    /// one. `fit` must not look at it, and a saved state must not depend on it.
    #[must_use]
    pub fn readout(mut self) -> Self {
        self.readout = true;
        self
    }

    /// Says that the parameter names a file, which [`crate::Host::asset`] then gives the path of.
    #[must_use]
    pub fn asset(mut self) -> Self {
        self.kind = Some(ParamKind::ASSET);
        self
    }

    /// Says that the parameter is a list of files, whose default is an empty list. Users may name
    /// any number of them; [`crate::Host::asset`] gives the path of the first under `NAME.0`, of the
    /// second under `NAME.1`, and so on.
    #[must_use]
    pub fn assets(mut self) -> Self {
        self.kind = Some(ParamKind::ASSET.and(ParamKind::MANY));
        self
    }

    /// Says the type of a parameter whose default is `null`.
    #[must_use]
    pub fn integer(mut self) -> Self {
        self.kind = Some(ParamKind::INTEGER);
        self
    }

    /// Says that the text `auto` is a value of a whole number too: the detector then finds one.
    #[must_use]
    pub fn or_auto(mut self) -> Self {
        self.auto = true;
        self
    }

    /// Says that a parameter whose default is a whole number may be any number.
    #[must_use]
    pub fn number(mut self) -> Self {
        self.kind = Some(ParamKind::NUMBER);
        self
    }

    pub(crate) fn kind_of(&self, default: &Value) -> ParamKind {
        let kind = self.kind.unwrap_or(match default {
            Value::Bool(_) => ParamKind::BOOLEAN,
            Value::Number(number) if number.is_f64() => ParamKind::NUMBER,
            Value::Number(_) => ParamKind::INTEGER,
            Value::Array(_) => ParamKind::LIST,
            _ => ParamKind::TEXT,
        });
        let kind = if self.auto { kind.and(ParamKind::AUTO) } else { kind };
        if self.readout { kind.and(ParamKind::READOUT) } else { kind }
    }
}
