//! What a benchmark must not say although it parses.

use std::collections::HashSet;

use super::{BENCHMARK_SCHEMA, Benchmark, Role};
use crate::error::DatasetError;
use crate::preprocess::Preprocess;

impl Benchmark {
    pub(super) fn validate(&self, origin: &str) -> Result<(), DatasetError> {
        let bad = |expected: String, got: String| DatasetError::Benchmark {
            origin: origin.to_owned(),
            expected,
            got,
        };
        if self.schema != BENCHMARK_SCHEMA {
            let expected = format!("`schema` = {BENCHMARK_SCHEMA}");
            return Err(bad(expected, self.schema.to_string()));
        }
        for (key, name) in [("name", &self.name), ("version", &self.version)] {
            check_name(key, name).map_err(|(expected, got)| bad(expected, got))?;
        }
        if self.classes < 2 {
            return Err(bad("`classes` of at least 2".into(), self.classes.to_string()));
        }
        for (key, values) in [("mean", self.classifier.mean), ("std", self.classifier.std)] {
            let plausible = |value: &f32| value.is_finite() && (key == "mean" || *value > 0.0);
            if !values.iter().all(plausible) {
                let expected = format!("finite `classifier.{key}`, and `std` above 0");
                return Err(bad(expected, format!("{values:?}")));
            }
        }
        check_preprocess("preprocess", self.preprocess).map_err(|(e, g)| bad(e, g))?;
        self.validate_sets().map_err(|(expected, got)| bad(expected, got))?;
        for (name, place) in &self.assets {
            if place.is_empty() || place == "embedded:" {
                let expected = format!("a path or `embedded:NAME` as asset `{name}`");
                return Err(bad(expected, format!("`{place}`")));
            }
        }
        Ok(())
    }

    fn validate_sets(&self) -> Result<(), (String, String)> {
        let mut seen = HashSet::new();
        for set in &self.sets {
            let (role, name) = (set.role, &set.name);
            check_name("name", name)?;
            if !seen.insert((role, name)) {
                let expected = format!("set names that are unique within role `{role}`");
                return Err((expected, format!("`{name}` twice")));
            }
            if set.size == Some(0) {
                return Err((format!("`size` of at least 1 for `{name}`"), "0".into()));
            }
            if let Some(preprocess) = set.preprocess {
                check_preprocess(&format!("preprocess of {role} set `{name}`"), preprocess)?;
            }
        }
        for role in [Role::IdTrain, Role::IdTest] {
            let count = self.sets_of(role).count();
            if count != 1 {
                return Err((format!("exactly one set with role `{role}`"), count.to_string()));
            }
        }
        for role in [Role::IdVal, Role::OodVal] {
            let count = self.sets_of(role).count();
            if count > 1 {
                return Err((format!("at most one set with role `{role}`"), count.to_string()));
            }
        }
        if !self.sets.iter().any(|set| matches!(set.role, Role::Near | Role::Far)) {
            return Err(("a set with role `near` or `far`".into(), "none".into()));
        }
        Ok(())
    }
}

/// Names become parts of file names and columns of tables.
fn check_name(key: &str, name: &str) -> Result<(), (String, String)> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if !name.is_empty() && !name.starts_with('.') && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(());
    }
    let expected = format!("`{key}` of up to 64 letters, digits and `-_.+`");
    Err((expected, format!("`{name}`")))
}

fn check_preprocess(place: &str, preprocess: Preprocess) -> Result<(), (String, String)> {
    preprocess.check().map_err(|(expected, got)| (format!("{expected} in `{place}`"), got))
}
