//! What a run found, computed from its raw scores: what every exporter lays out.

use std::cmp::Ordering;
use std::io;

use oodbench_metrics::{OodMetrics, accuracy};
use oodbench_record::{
    CellState, ListedSet, PlannedDetector, RecordError, RunFolder, RunManifest, SetFile, SetRef,
};

use crate::error::ReportError;
use crate::figures::listed;
use crate::row::{Row, Status};

/// The two groups that OOD sets are averaged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// OOD images that look like ID ones.
    Near,
    /// OOD images that look different.
    Far,
}

impl Group {
    /// Both, in the order of the reports.
    pub const ALL: [Self; 2] = [Self::Near, Self::Far];

    /// Its role in a benchmark: `near` or `far`.
    pub fn role(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    /// Its name in OpenOOD's tables: `nearood` or `farood`.
    pub fn openood_name(self) -> &'static str {
        match self {
            Self::Near => "nearood",
            Self::Far => "farood",
        }
    }
}

/// The sets that an average is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSets {
    /// Which group.
    pub group: Group,
    /// The places of its members in [`Leaderboard::sets`].
    pub members: Vec<usize>,
    /// What the benchmark has and the run has not: members, and ID sets that they would have been
    /// compared with. An average without them is another quantity than the benchmark's.
    pub without: Vec<SetRef>,
}

impl GroupSets {
    /// Whether averages of this group bear the mark.
    pub fn is_partial(&self) -> bool {
        !self.without.is_empty()
    }

    /// Whether the benchmark has no such group.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && !self.is_partial()
    }
}

/// A set that was scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredSet {
    /// What was planned.
    pub listed: ListedSet,
    /// Its images; absent until the classifier saw them.
    pub images: Option<SetFile>,
    /// Of the images with a class, the fraction that the classifier gets right.
    pub accuracy: Option<f64>,
}

impl ScoredSet {
    fn read(run: &RunFolder, listed: &ListedSet) -> Result<Self, ReportError> {
        let images = match run.set(&listed.set) {
            Ok(images) => Some(images),
            Err(RecordError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                None
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(images) = &images
            && images.ids.len() != listed.n_images
        {
            return Err(ReportError::Images {
                set: listed.set.clone(),
                expected: listed.n_images,
                got: images.ids.len(),
            });
        }
        let accuracy = match &images {
            Some(images) => accuracy(&images.predictions, &images.labels).map_err(|source| {
                ReportError::Metrics {
                    label: "accuracy".to_owned(),
                    set: listed.set.clone(),
                    source,
                }
            })?,
            None => None,
        };
        Ok(Self { listed: listed.clone(), images, accuracy })
    }

    /// Its group in OpenOOD's words: `id`, `nearood`, `farood` or `csid`.
    pub fn openood_group(&self) -> &str {
        match self.listed.set.role.as_str() {
            "id-test" => "id",
            "near" => Group::Near.openood_name(),
            "far" => Group::Far.openood_name(),
            other => other,
        }
    }
}

/// Why no number of a leaderboard is the benchmark's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Sets of the benchmark are missing.
    Incomplete {
        /// Which.
        missing: Vec<SetRef>,
    },
    /// Sets were scored in part.
    Limited {
        /// The `--limit` of the run.
        limit: Option<usize>,
    },
}

impl Mark {
    /// One line that says so.
    pub fn text(&self) -> String {
        match self {
            Self::Incomplete { missing } => format!("incomplete: missing {}", listed(missing)),
            Self::Limited { limit: Some(1) } => {
                "limited to 1 image a set: not comparable".to_owned()
            }
            Self::Limited { limit: Some(limit) } => {
                format!("limited to {limit} images a set: not comparable")
            }
            Self::Limited { limit: None } => {
                "limited to a part of the images: not comparable".to_owned()
            }
        }
    }
}

/// The status of a row as reports show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The word of [`Status::word`], but `partial` for a row that is done in a run with a mark.
    pub word: &'static str,
    /// One line: why; empty for a row that is done.
    pub reason: String,
}

/// A row that is worse than guessing on a set, which mostly means that its scores are the wrong way
/// round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BelowChance<'a> {
    /// The row.
    pub label: &'a str,
    /// The OOD set.
    pub set: &'a SetRef,
    /// Its AUROC, under 0.5.
    pub auroc: f64,
}

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaderboard {
    /// What was planned, and on what.
    pub manifest: RunManifest,
    /// The sets that were scored, in the order of the benchmark.
    pub sets: Vec<ScoredSet>,
    /// The places in `sets` of what counts as ID: the ID test images and, in full-spectrum mode,
    /// the covariate-shifted ones.
    pub id_sets: Vec<usize>,
    /// What near-OOD averages are made of.
    pub near: GroupSets,
    /// What far-OOD averages are made of.
    pub far: GroupSets,
    /// Of all ID images, the fraction that the classifier gets right.
    pub accuracy: Option<f64>,
    /// Why its numbers are not the benchmark's own; empty for a full run.
    pub marks: Vec<Mark>,
    /// Ranked by near-OOD AUROC, then far-OOD AUROC, then label; what has no scores comes last, in
    /// the planned order.
    pub rows: Vec<Row>,
}

impl Leaderboard {
    /// Reads a run, be it finished or not, and computes everything.
    ///
    /// # Errors
    /// A file that is missing or broken, scores and images that do not fit each other, scores that
    /// are not finite.
    pub fn new(run: &RunFolder) -> Result<Self, ReportError> {
        let manifest = run.manifest()?;
        let sets = manifest
            .sets
            .iter()
            .map(|listed| ScoredSet::read(run, listed))
            .collect::<Result<Vec<_>, _>>()?;
        let is_id =
            |set: &SetRef| set.role == "id-test" || (manifest.full_spectrum && set.role == "csid");
        let places = |wanted: &dyn Fn(&SetRef) -> bool| -> Vec<usize> {
            (0..sets.len()).filter(|&place| wanted(&sets[place].listed.set)).collect()
        };
        let missing = |wanted: &dyn Fn(&SetRef) -> bool| -> Vec<SetRef> {
            manifest
                .missing
                .iter()
                .map(|missing| &missing.set)
                .filter(|set| wanted(set))
                .cloned()
                .collect()
        };
        let group = |group: Group| {
            let is_member = |set: &SetRef| set.role == group.role();
            let (members, mut without) = (places(&is_member), missing(&is_member));
            if !members.is_empty() || !without.is_empty() {
                without.extend(missing(&is_id));
            }
            GroupSets { group, members, without }
        };
        let mut board = Self {
            id_sets: places(&is_id),
            near: group(Group::Near),
            far: group(Group::Far),
            accuracy: None,
            marks: Vec::new(),
            rows: Vec::new(),
            sets: Vec::new(),
            manifest: manifest.clone(),
        };
        let counts =
            |set: &SetRef| is_id(set) || Group::ALL.iter().any(|group| set.role == group.role());
        let missing = missing(&counts);
        if !missing.is_empty() {
            board.marks.push(Mark::Incomplete { missing });
        }
        if sets.iter().any(|set| set.listed.n_images < set.listed.of_images) {
            board.marks.push(Mark::Limited { limit: manifest.limit });
        }
        board.sets = sets;
        board.accuracy = board.id_accuracy();
        for (position, planned) in manifest.detectors.iter().enumerate() {
            let row = board.row(run, position, planned)?;
            board.rows.push(row);
        }
        // The sort is stable, which keeps the planned order of rows without scores.
        board.rows.sort_by(by_rank);
        Ok(board)
    }

    /// What the average of a group is made of.
    pub fn group(&self, group: Group) -> &GroupSets {
        match group {
            Group::Near => &self.near,
            Group::Far => &self.far,
        }
    }

    /// The OOD sets, near ones first.
    pub fn ood_sets(&self) -> impl Iterator<Item = (usize, &ScoredSet)> {
        self.near.members.iter().chain(&self.far.members).map(|&place| (place, &self.sets[place]))
    }

    /// The number of ID images that every OOD set is compared with.
    pub fn n_id(&self) -> usize {
        self.id_sets.iter().map(|&place| self.sets[place].listed.n_images).sum()
    }

    /// The average of a row over a group; [`GroupSets::is_partial`] tells whether it is marked.
    pub fn average<'a>(&self, row: &'a Row, group: Group) -> &'a OodMetrics {
        match group {
            Group::Near => &row.near,
            Group::Far => &row.far,
        }
    }

    /// Every row and OOD set with an AUROC under 0.5, in the order of the rows.
    pub fn below_chance(&self) -> impl Iterator<Item = BelowChance<'_>> {
        self.rows.iter().flat_map(move |row| {
            self.ood_sets().filter_map(move |(place, set)| {
                let auroc = row.metrics[place].auroc.filter(|&auroc| auroc < 0.5)?;
                Some(BelowChance { label: &row.label, set: &set.listed.set, auroc })
            })
        })
    }

    /// The status of a row, with the marks of the run.
    pub fn standing(&self, row: &Row) -> Standing {
        let mut reasons = vec![row.status.reason().to_owned()];
        let mut word = row.status.word();
        if row.status.is_ranked() && !self.marks.is_empty() {
            word = Status::Partial { reason: String::new() }.word();
            reasons.extend(self.marks.iter().map(Mark::text));
        }
        reasons.retain(|reason| !reason.is_empty());
        Standing { word, reason: reasons.join("; ") }
    }

    fn id_accuracy(&self) -> Option<f64> {
        let (mut predictions, mut labels) = (Vec::new(), Vec::new());
        for &place in &self.id_sets {
            let images = self.sets[place].images.as_ref()?;
            predictions.extend_from_slice(&images.predictions);
            labels.extend_from_slice(&images.labels);
        }
        accuracy(&predictions, &labels).ok().flatten()
    }

    fn row(
        &self,
        run: &RunFolder,
        position: usize,
        planned: &PlannedDetector,
    ) -> Result<Row, ReportError> {
        let sets: Vec<&SetRef> = self.sets.iter().map(|set| &set.listed.set).collect();
        let mut cells = Vec::with_capacity(sets.len());
        for (set, place) in sets.iter().zip(0..) {
            let Some(cell) = planned.cells.iter().find(|cell| cell.set == **set) else {
                cells.push(CellState::Outstanding);
                continue;
            };
            let state = run.cell(&cell.key)?;
            if let CellState::Done(_, scores) = &state {
                self.check_scores(run, &cell.key, place, scores.len())?;
            }
            cells.push(state);
        }
        let mut row = Row::new(position, planned, &sets, cells);
        // All or nothing: fewer ID images would make another quantity under the same name.
        let id: Option<Vec<&[f32]>> = self.id_sets.iter().map(|&place| row.scores(place)).collect();
        let id = id.unwrap_or_default().concat();
        for (place, set) in self.ood_sets() {
            let Some(ood) = row.scores(place) else { continue };
            row.metrics[place] = OodMetrics::new(&id, ood).map_err(|source| {
                let (label, set) = (row.label.clone(), set.listed.set.clone());
                ReportError::Metrics { label, set, source }
            })?;
        }
        let mean = |group: &GroupSets| {
            let members: Vec<_> = group.members.iter().map(|&place| row.metrics[place]).collect();
            OodMetrics::group_mean(&members)
        };
        (row.near, row.far) = (mean(&self.near), mean(&self.far));
        Ok(row)
    }

    fn check_scores(
        &self,
        run: &RunFolder,
        key: &str,
        place: usize,
        got: usize,
    ) -> Result<(), ReportError> {
        let set = &self.sets[place];
        if set.images.is_none() {
            return Err(ReportError::NoImages { set: set.listed.set.clone() });
        }
        if got == set.listed.n_images {
            return Ok(());
        }
        Err(ReportError::Scores {
            path: run.record_path(key),
            set: set.listed.set.clone(),
            expected: set.listed.n_images,
            got,
        })
    }
}

/// The order of the rows. Costs have no say in it.
fn by_rank(a: &Row, b: &Row) -> Ordering {
    let ranked_first = b.status.is_ranked().cmp(&a.status.is_ranked());
    if ranked_first.is_ne() || !a.status.is_ranked() {
        return ranked_first;
    }
    descending(a.near.auroc, b.near.auroc)
        .then_with(|| descending(a.far.auroc, b.far.auroc))
        .then_with(|| a.label.cmp(&b.label))
        .then_with(|| a.id.cmp(&b.id))
        .then_with(|| a.params_json().cmp(&b.params_json()))
}

/// Greatest first, absent last.
fn descending(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        _ => b.is_some().cmp(&a.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TestRun, set};
    use oodbench_record::Outcome;

    fn labels(board: &Leaderboard) -> Vec<&str> {
        board.rows.iter().map(|row| row.label.as_str()).collect()
    }

    const ID: &[f32] = &[0.1, 0.2, 0.2, 0.4];

    #[test]
    fn metrics_are_those_of_the_scores() {
        let board = TestRun::small().board();
        let msp = board.rows.iter().find(|row| row.label == "msp").unwrap();
        // Of the 12 pairs with letters, 10 are won and the two at 0.2 halved; noise wins all.
        let won = (2.0 + 4.0 + 4.0) / 12.0;
        assert_eq!((msp.near.auroc, msp.far.auroc), (Some(won), Some(1.0)));
        assert_eq!(msp.metrics[1], OodMetrics::new(ID, &[0.2, 0.5, 0.7]).unwrap());
        assert_eq!(board.accuracy, Some(0.75));
        let cost = msp.cost.as_ref().unwrap();
        assert_eq!((cost.fit_s, cost.score_images_per_s), (0.25, Some(9.0 / 1.5)));
        assert!(board.marks.is_empty() && board.below_chance().next().is_none());
    }

    #[test]
    fn ties_go_by_label_and_rows_without_scores_come_last_as_planned() {
        let board = TestRun::small().board();
        assert_eq!(labels(&board), ["mls", "msp", "odin", "faulty"]);
        assert_eq!(
            board.rows[3].status,
            Status::Failed { reason: "panicked: index out of bounds".into() }
        );
        assert_eq!(board.rows[2].status.word(), "skipped");
    }

    #[test]
    fn far_auroc_decides_between_equal_near_ones() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.ood("far", "noise", 1);
        run.detector("a", &[ID, &[0.3], &[0.3]]);
        run.detector("b", &[ID, &[0.3], &[0.5]]);
        run.detector("c", &[ID, &[0.5], &[0.0]]);
        assert_eq!(labels(&run.board()), ["c", "b", "a"]);
    }

    #[test]
    fn neither_the_planned_order_nor_costs_change_ranks_or_metrics() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 2);
        run.ood("far", "noise", 1);
        for (n, label) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let near = [0.15 + 0.1 * n as f32, 0.3];
            run.detector_at_cost(label, &[ID, &near, &[0.3]], n as f64, 5.0 - n as f64);
        }
        let ranked = |board: &Leaderboard| -> Vec<_> {
            board
                .rows
                .iter()
                .map(|row| (row.label.clone(), row.metrics.clone(), row.near))
                .collect()
        };
        let expected = ranked(&run.board());
        for turn in 0..12 {
            run.manifest.detectors.rotate_left(1);
            run.manifest.detectors.swap(turn % 4, (turn * 2 + 1) % 4);
            assert_eq!(ranked(&run.board()), expected);
        }
        let mut other = TestRun::new();
        other.ood("near", "letters", 2);
        other.ood("far", "noise", 1);
        for (n, label) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let near = [0.15 + 0.1 * n as f32, 0.3];
            other.detector_at_cost(label, &[ID, &near, &[0.3]], 9.0, 0.0);
        }
        let board = other.board();
        assert_eq!(ranked(&board), expected);
        assert_eq!(board.rows[0].cost.as_ref().unwrap().score_images_per_s, None);
    }

    #[test]
    fn a_missing_set_marks_the_average_of_its_group_alone() {
        let mut run = TestRun::small();
        run.missing("far", "svhn");
        let board = run.board();
        assert!(board.far.is_partial() && !board.near.is_partial());
        assert_eq!(board.marks[0].text(), "incomplete: missing far/svhn");
        assert_eq!(board.rows[0].far.auroc, Some(1.0));
        assert_eq!(board.standing(&board.rows[0]).word, "partial");
    }

    #[test]
    fn a_group_that_is_missing_altogether_has_no_average() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.missing("far", "svhn");
        run.detector("a", &[ID, &[0.3]]);
        let board = run.board();
        assert!(board.far.is_partial());
        assert_eq!(board.rows[0].far, OodMetrics::default());
    }

    #[test]
    fn sets_that_no_number_rests_on_do_not_mark_them() {
        let mut run = TestRun::small();
        run.missing("csid", "corrupted");
        assert!(run.board().marks.is_empty());
        run.manifest.full_spectrum = true;
        let board = run.board();
        assert_eq!(board.marks[0].text(), "incomplete: missing csid/corrupted");
        assert!(board.near.is_partial() && board.far.is_partial());
    }

    #[test]
    fn a_limited_run_is_marked() {
        let mut run = TestRun::small();
        run.manifest.limit = Some(4);
        assert!(run.board().marks.is_empty(), "no set has more than 4 images");
        run.manifest.sets[0].of_images = 10;
        let board = run.board();
        assert_eq!(board.marks[0].text(), "limited to 4 images a set: not comparable");
        assert_eq!(board.standing(&board.rows[0]).word, "partial");
    }

    #[test]
    fn full_spectrum_counts_shifted_images_as_id() {
        let mut run = TestRun::new();
        run.set("csid", "corrupted", &[0, 1], &[1, 0]);
        run.ood("near", "letters", 2);
        let (shifted, near): (&[f32], &[f32]) = (&[0.6, 0.1], &[0.3, 0.7]);
        run.detector("a", &[ID, shifted, near]);
        let board = run.board();
        assert_eq!(board.rows[0].near, OodMetrics::new(ID, near).unwrap());
        assert_eq!((board.accuracy, board.n_id()), (Some(0.75), 4));

        run.manifest.full_spectrum = true;
        let board = run.board();
        let id = [ID, shifted].concat();
        assert_eq!(board.rows[0].near, OodMetrics::new(&id, near).unwrap());
        assert_eq!((board.accuracy, board.n_id()), (Some(0.5), 6));
    }

    #[test]
    fn a_failed_cell_takes_the_average_with_it() {
        let mut run = TestRun::small();
        run.ood("far", "rings", 1);
        run.detector("knn", &[ID, &[0.2, 0.5, 0.7], &[0.9, 1.5], &[]]);
        run.fail("knn-far-rings", &set("far", "rings"), &Outcome::TimedOut, "silent for 60 s");
        let board = run.board();
        let knn = board.rows.iter().find(|row| row.label == "knn").unwrap();
        let reason = "far/rings: timed out: silent for 60 s".to_owned();
        assert_eq!(knn.status, Status::Partial { reason });
        assert_eq!((knn.far.auroc, knn.metrics[2].auroc), (None, Some(1.0)));
        assert!(knn.near.auroc.is_some());
    }

    #[test]
    fn without_id_scores_nothing_is_compared() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("a", &[&[], &[0.3]]);
        let board = run.board();
        assert_eq!(board.rows[0].near, OodMetrics::default());
        assert_eq!(board.rows[0].status.reason(), "not run yet: id-test/digits");
    }

    #[test]
    fn a_run_that_has_just_begun_is_outstanding() {
        let mut run = TestRun::new();
        run.detector("a", &[&[]]);
        std::fs::remove_dir_all(run.folder().root().join("sets")).unwrap();
        let board = run.board();
        assert_eq!((board.rows[0].status.clone(), board.accuracy), (Status::Outstanding, None));
    }

    #[test]
    fn worse_than_chance_is_listed() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.ood("far", "noise", 1);
        run.detector("good", &[ID, &[0.3], &[0.5]]);
        run.detector("constant", &[&[1.0; 4], &[1.0], &[1.0]]);
        run.detector("upside-down", &[ID, &[0.3], &[0.0]]);
        let board = run.board();
        let found: Vec<_> = board.below_chance().collect();
        let far = set("far", "noise");
        assert_eq!(found, [BelowChance { label: "upside-down", set: &far, auroc: 0.0 }]);
    }

    #[test]
    fn a_record_that_does_not_fit_its_set_is_refused() {
        let mut run = TestRun::new();
        run.detector("a", &[&[0.5]]);
        run.folder().write_manifest(&run.manifest).unwrap();
        let error = Leaderboard::new(run.folder()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.ends_with("expected 4 scores, one for each image of `id-test/digits`, got 1"),
            "{text}"
        );
        assert!(!error.is_write_failure());
    }
}
