//! What somebody should know before trusting the numbers of a run: each with its cause and with what
//! to do about it. The engine says what it finds while a run goes on, reports show everything.

use std::fmt;

use serde_json::Value;

use crate::cell::SetRef;

/// How far the accuracy may be off what is stated of a checkpoint.
const ACCURACY_SLACK: f64 = 0.02;

/// The fewest images that an accuracy off what is stated tells anything by.
const ENOUGH_IMAGES: usize = 1000;

/// The fewest images that an accuracy near chance tells anything by.
const FEW_IMAGES: usize = 100;

/// Which end of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepEnd {
    /// The least value.
    Least,
    /// The greatest value.
    Greatest,
}

/// Something that the numbers of a run do not say themselves.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// Sets of the benchmark are missing: no number is the benchmark's own.
    Incomplete {
        /// Which.
        missing: Vec<SetRef>,
    },
    /// Sets were scored in part: no number is the benchmark's own.
    Limited {
        /// The `--limit` of the run.
        limit: Option<usize>,
    },
    /// Something about what the run was given, as files that it does not know.
    Input {
        /// One line.
        text: String,
    },
    /// The classifier is right more or less often than is stated of it.
    Accuracy {
        /// The in-distribution images.
        set: SetRef,
        /// A fraction.
        accuracy: f64,
        /// A fraction.
        stated: f64,
    },
    /// The classifier hardly does better than guessing.
    NearChance {
        /// The in-distribution images.
        set: SetRef,
        /// A fraction.
        accuracy: f64,
    },
    /// A detector is worse than guessing on a set, and perhaps on more.
    BelowChance {
        /// The row.
        label: String,
        /// The out-of-distribution images on which it is worst.
        set: SetRef,
        /// Under 0.5.
        auroc: f64,
        /// How many other sets there are on which it is under 0.5.
        n_others: usize,
    },
    /// A search chose a value at the end of those that it tried.
    SweepEnd {
        /// The row.
        label: String,
        /// The parameter.
        parameter: String,
        /// What was chosen.
        value: Value,
        /// The value at the other end.
        other: Value,
        /// How many values it tried.
        n_values: usize,
        /// Which end it is.
        end: SweepEnd,
    },
    /// A detector said so itself.
    Said {
        /// The row.
        label: String,
        /// One line.
        text: String,
    },
}

impl Warning {
    /// What an accuracy gives cause for. `stated` is what is known of the checkpoint.
    pub fn of_accuracy(
        set: &SetRef,
        accuracy: f64,
        n_images: usize,
        stated: Option<f64>,
        n_classes: usize,
    ) -> Option<Self> {
        let set = set.clone();
        match stated {
            Some(stated) => (n_images >= ENOUGH_IMAGES
                && (stated - accuracy).abs() > ACCURACY_SLACK)
                .then_some(Self::Accuracy { set, accuracy, stated }),
            // With one class everything is right, and with two a half is chance and no more.
            None => (n_images >= FEW_IMAGES
                && n_classes > 1
                && accuracy < (2.0 / n_classes as f64).min(0.55))
            .then_some(Self::NearChance { set, accuracy }),
        }
    }

    /// A word for scripts, in kebab case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } => "incomplete",
            Self::Limited { .. } => "limited",
            Self::Input { .. } => "input",
            Self::Accuracy { .. } => "accuracy",
            Self::NearChance { .. } => "near-chance",
            Self::BelowChance { .. } => "below-chance",
            Self::SweepEnd { .. } => "sweep-end",
            Self::Said { .. } => "detector",
        }
    }

    /// The row that it is about; `None` where it is about the run.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::BelowChance { label, .. }
            | Self::SweepEnd { label, .. }
            | Self::Said { label, .. } => Some(label),
            _ => None,
        }
    }

    /// Whether it marks the whole run as another thing than the benchmark.
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::Incomplete { .. } | Self::Limited { .. })
    }

    /// Whether it is known, and said, while the run goes on.
    pub fn is_said_while_running(&self) -> bool {
        matches!(
            self,
            Self::Input { .. }
                | Self::Accuracy { .. }
                | Self::NearChance { .. }
                | Self::Said { .. }
        )
    }

    /// What was found, without the row that it is about. One line.
    pub fn cause(&self) -> String {
        match self {
            Self::Incomplete { missing } => {
                let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
                format!("incomplete: missing {}", names.join(", "))
            }
            Self::Limited { limit: Some(1) } => {
                "limited to 1 image a set: not comparable".to_owned()
            }
            Self::Limited { limit: Some(limit) } => {
                format!("limited to {limit} images a set: not comparable")
            }
            Self::Limited { limit: None } => {
                "limited to a part of the images: not comparable".to_owned()
            }
            Self::Accuracy { set, accuracy, stated } => format!(
                "the classifier is right on {} of {set}, and {} are stated of it",
                percent(*accuracy),
                percent(*stated)
            ),
            Self::NearChance { set, accuracy } => format!(
                "the classifier is right on {} of {set}, which is near chance",
                percent(*accuracy)
            ),
            Self::BelowChance { set, auroc, n_others, .. } => {
                let others = match n_others {
                    0 => String::new(),
                    1 => " and under 50 % on another set".to_owned(),
                    n => format!(" and under 50 % on {n} other sets"),
                };
                format!("AUROC {} on {set}{others}, worse than guessing", percent(*auroc))
            }
            Self::SweepEnd { parameter, value, other, n_values, end, .. } => {
                let (which, from, to) = match end {
                    SweepEnd::Least => ("least", value, other),
                    SweepEnd::Greatest => ("greatest", other, value),
                };
                format!(
                    "the search chose {parameter} = {value}, the {which} of the {n_values} values that it tried, {from} to {to}"
                )
            }
            Self::Input { text } | Self::Said { text, .. } => text.clone(),
        }
    }

    /// What to do about it, one line; `None` where the cause says it, or only the detector's author
    /// knows.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Incomplete { .. } => {
                "put the images there and start the same command again: what is finished is kept"
            }
            Self::Limited { .. } => "run again without `--limit`",
            Self::Accuracy { .. } => {
                "is it another data set, or another preprocessing, than the checkpoint's?"
            }
            Self::NearChance { .. } => "do mean, std and the order of classes fit the weights?",
            Self::BelowChance { .. } => {
                "are its scores the wrong way round? higher must mean more out-of-distribution"
            }
            Self::SweepEnd { label, parameter, end, .. } => {
                let which = if *end == SweepEnd::Least { "smaller" } else { "greater" };
                return Some(format!(
                    "{which} values may do better: try one with `--set {label}.{parameter}=VALUE`"
                ));
            }
            Self::Input { .. } | Self::Said { .. } => return None,
        };
        Some(text.to_owned())
    }
}

impl fmt::Display for Warning {
    /// One line: the row, the cause, the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(label) = self.label() {
            write!(f, "{label}: ")?;
        }
        f.write_str(&self.cause())?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> SetRef {
        SetRef { role: "id-test".into(), name: "digits".into() }
    }

    #[test]
    fn an_accuracy_is_warned_of_where_it_tells_something() {
        let kind = |accuracy, n_images, stated, n_classes| {
            let found = Warning::of_accuracy(&set(), accuracy, n_images, stated, n_classes);
            found.map(|warning| warning.kind())
        };
        assert_eq!(kind(0.90, 1000, Some(0.95), 10), Some("accuracy"));
        assert_eq!(kind(0.94, 1000, Some(0.95), 10), None);
        assert_eq!(kind(0.50, 999, Some(0.95), 10), None);
        assert_eq!(kind(0.15, 100, None, 10), Some("near-chance"));
        assert_eq!(kind(0.15, 99, None, 10), None);
        assert_eq!(kind(0.25, 100, None, 10), None);
        assert_eq!(kind(1.0, 100, None, 1), None);
        assert_eq!([0.5, 0.9].map(|it| kind(it, 100, None, 2)), [Some("near-chance"), None]);
    }

    #[test]
    fn a_warning_is_one_line_with_cause_and_remedy() {
        let warning = Warning::SweepEnd {
            label: "knn".into(),
            parameter: "K".into(),
            value: 50.into(),
            other: 1000.into(),
            n_values: 5,
            end: SweepEnd::Least,
        };
        assert_eq!(
            warning.to_string(),
            "knn: the search chose K = 50, the least of the 5 values that it tried, 50 to 1000; \
             smaller values may do better: try one with `--set knn.K=VALUE`"
        );
        let warning = Warning::Accuracy { set: set(), accuracy: 0.5, stated: 0.9506 };
        assert_eq!(
            warning.cause(),
            "the classifier is right on 50.00 % of id-test/digits, and 95.06 % are stated of it"
        );
        let warning = Warning::Said { label: "knn".into(), text: "no".into() };
        assert_eq!(warning.to_string(), "knn: no");
    }
}
