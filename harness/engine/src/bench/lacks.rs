//! What a detector needs and a run has not, in words for the leaderboard.

use oodbench_abi::Needs;
use oodbench_datasets::Role;

use crate::features::{Exported, FeatureFolder, file_of};

/// The sets that detectors are fitted on, by the need that asks for them.
const FITTED_ON: [(Needs, Role); 3] =
    [(Needs::TRAIN, Role::IdTrain), (Needs::VAL, Role::IdVal), (Needs::VAL_OOD, Role::OodVal)];

pub(super) fn of_images(needs: Needs, roles: &[Role]) -> Option<String> {
    let lacking =
        FITTED_ON.iter().filter(|(need, role)| needs.contains(*need) && !roles.contains(role));
    let names: Vec<String> = lacking.map(|(_, role)| format!("the {role} images")).collect();
    (!names.is_empty()).then(|| format!("needs {}, which this run has not", names.join(" and ")))
}

pub(super) fn of_features(needs: Needs, folder: &FeatureFolder, searched: bool) -> Option<String> {
    let of_classifier = [Needs::IMAGES, Needs::LAYERS, Needs::GRADIENT, Needs::FORWARD];
    let asked: Vec<&str> = of_classifier
        .into_iter()
        .filter(|need| needs.contains(*need))
        .flat_map(|need| need.names())
        .collect();
    if !asked.is_empty() {
        return Some(format!(
            "needs images and the classifier itself ({}): run it with `--benchmark` and `--classifier`",
            asked.join(", ")
        ));
    }
    let mut lacking = Vec::new();
    for (need, role) in FITTED_ON {
        if needs.contains(need) && folder.of_role(role).is_none() {
            lacking.push(format!("`{}`", file_of(role)));
        }
    }
    if needs.contains(Needs::HEAD) && folder.head.is_none() {
        lacking.push("`head.safetensors` (the last linear layer)".to_owned());
    }
    let fitted = |role| {
        let need = FITTED_ON.iter().find(|(_, of)| *of == role).map(|(need, _)| *need);
        need.is_none_or(|need| needs.contains(need) || (searched && role != Role::IdTrain))
    };
    let read: Vec<&Exported> = folder.sets.iter().filter(|set| fitted(set.role)).collect();
    let mut without = |tensor: &str, lacks: &dyn Fn(&Exported) -> bool| {
        let files = read.iter().filter(|set| lacks(set));
        let files: Vec<String> = files.map(|set| format!("`{}`", folder.relative(set))).collect();
        if !files.is_empty() {
            lacking.push(format!("`{tensor}` in {}", files.join(", ")));
        }
    };
    if needs.contains(Needs::LOGITS) {
        without("logits", &|set| !set.gives_logits());
    }
    if needs.contains(Needs::FEATURES) {
        without("features", &|set| !set.has_features);
    }
    if needs.contains(Needs::LABELS) {
        let is_fitted_on = |role: Role| {
            FITTED_ON[..2].iter().any(|(need, of)| *of == role && needs.contains(*need))
        };
        without("labels", &|set| is_fitted_on(set.role) && set.labels.is_none());
    }
    (!lacking.is_empty()).then(|| format!("needs {}: not exported", lacking.join(" and ")))
}
