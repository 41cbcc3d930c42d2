//! What a bench would do, for people: `bench --dry-run`.

use std::path::Path;

use oodbench_engine::bench::{Origin, Outline};

/// `1 class`, `3 classes`.
fn counted(n: usize, what: &str) -> String {
    match (n, what.ends_with('s')) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{n} {what}es"),
        (_, false) => format!("{n} {what}s"),
    }
}

/// The plan, for people.
pub(crate) fn describe(run: &Path, outline: &Outline) -> String {
    let mut text = match &outline.origin {
        Origin::Images { benchmark, version, classifier } => format!(
            "benchmark  {benchmark} {version}\nclassifier {} ({})\n",
            classifier.name,
            classifier.weights.display()
        ),
        Origin::Features { folder, n_classes, n_features, has_head } => {
            let head = if *has_head { "with" } else { "without" };
            let (classes, features) =
                (counted(*n_classes, "class"), counted(*n_features, "feature"));
            format!("features   {} ({classes}, {features}, {head} a head)\n", folder.display())
        }
    };
    text.push_str(&format!("run        {}\n\nsets\n", run.display()));
    for (set, count) in &outline.sets {
        text.push_str(&format!("  {:<24} {count} images\n", set.to_string()));
    }
    for missing in &outline.missing {
        text.push_str(&format!("  {:<24} missing\n", missing.set.to_string()));
    }
    text.push_str("\ndetectors\n");
    for detector in &outline.detectors {
        let params = serde_json::Value::Object(detector.params.clone());
        let needs = detector.info.needs.names().join(", ");
        text.push_str(&format!("  {:<12} {params}  needs {needs}\n", detector.info.id));
        if let Some(grid) = &detector.search {
            let (n, names) = (grid.combinations.len(), grid.parameters.join(", "));
            let passes = match grid.groups(&detector.info).len() {
                1 => "1 pass".to_owned(),
                passes => format!("{passes} passes"),
            };
            let line = format!("searches {n} combinations of {names}, in {passes}");
            text.push_str(&format!("  {:<12} {line}\n", ""));
        }
    }
    for skipped in &outline.skipped {
        text.push_str(&format!("  {:<12} skipped: {}\n", skipped.info.id, skipped.reason));
    }
    text
}
