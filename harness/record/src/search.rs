//! The search for a detector's parameters, as it was planned and how it ended. What each
//! combination achieved is computed from the scores of its cells.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::manifest::ListedSet;

/// A search on validation images; test images have no part in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// The in-distribution validation images.
    pub id: ListedSet,
    /// The out-of-distribution validation images.
    pub ood: ListedSet,
    /// The parameters that are searched, in the order of the detector's description. The others
    /// are the same in every combination.
    pub parameters: Vec<String>,
    /// Every combination, in the order of the search: of several that are equally good, the first
    /// is chosen.
    pub combinations: Vec<Combination>,
    /// The place of the one that tells the validation sets apart best, by AUROC. Absent while
    /// scores are outstanding, and where every combination failed.
    pub chosen: Option<usize>,
}

/// One combination of parameters, with a cell for each of the two validation sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Combination {
    /// All parameters of the detector.
    pub params: Map<String, Value>,
    /// Key of the cell of the in-distribution images.
    pub id: String,
    /// Key of the cell of the out-of-distribution images.
    pub ood: String,
}
