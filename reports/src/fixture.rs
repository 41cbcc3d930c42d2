//! A small run folder for the tests: written by hand, so that every number can be worked out.

use oodbench_record::{
    Classifier, Combination, Cost, Failure, ListedSet, Machine, MissingSet, Outcome, PackId,
    PlannedCell, PlannedDetector, Record, RunFolder, RunManifest, SCHEMA, Search, SetFile, SetRef,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::leaderboard::Leaderboard;

/// A run in a temporary folder; what is changed in `manifest` counts from [`TestRun::board`] on.
pub(crate) struct TestRun {
    _folder: TempDir,
    run: RunFolder,
    pub(crate) manifest: RunManifest,
}

pub(crate) fn set(role: &str, name: &str) -> SetRef {
    SetRef { role: role.to_owned(), name: name.to_owned() }
}

impl TestRun {
    /// Four ID images of two classes, three of them classified rightly; no other set, no detector.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = RunManifest {
            schema: SCHEMA,
            benchmark: "toy".into(),
            title: "Toy digits".into(),
            benchmark_version: "1".into(),
            classifier: Classifier {
                name: "net.safetensors".into(),
                arch: "mlp".into(),
                blake3: "0123456789abcdef".into(),
                mean: Some([0.0; 3]),
                std: Some([1.0; 3]),
                n_features: 2,
                n_classes: None,
                stated_accuracy: None,
            },
            seed: 7,
            limit: None,
            full_spectrum: false,
            sets: Vec::new(),
            missing: Vec::new(),
            warnings: Vec::new(),
            detectors: Vec::new(),
            version: "0.1.0".into(),
            machine: Machine {
                platform: "toy-os".into(),
                threads: 2,
                device: "cpu".into(),
                gpu: None,
                precision: None,
            },
        };
        let mut run = Self { run: RunFolder::new(folder.path()), _folder: folder, manifest };
        run.set("id-test", "digits", &[0, 1, 0, 1], &[0, 1, 1, 1]);
        run
    }

    /// With one near and one far set: `msp` and `mls`, which share the near AUROC, `faulty`, which
    /// failed, and `odin`, which was skipped.
    pub(crate) fn small() -> Self {
        let mut run = Self::new();
        run.ood("near", "letters", 3);
        run.ood("far", "noise", 2);
        run.skipped("odin", "needs `GRADIENT`,\nwhich a feature bank | file has not");
        run.detector("msp", &[&[0.1, 0.2, 0.2, 0.4], &[0.2, 0.5, 0.7], &[0.9, 1.5]]);
        run.failed("faulty", &Outcome::Panicked, "index out of\nbounds");
        run.detector("mls", &[&[1.0, 2.0, 2.0, 4.0], &[2.0, 5.0, 7.0], &[9.0, 15.0]]);
        run
    }

    pub(crate) fn folder(&self) -> &RunFolder {
        &self.run
    }

    pub(crate) fn board(&self) -> Leaderboard {
        self.run.write_manifest(&self.manifest).unwrap();
        Leaderboard::new(&self.run).unwrap()
    }

    /// Adds a set with these labels and predictions.
    pub(crate) fn set(&mut self, role: &str, name: &str, labels: &[i64], predictions: &[i64]) {
        let n_images = labels.len();
        let file = SetFile {
            schema: SCHEMA,
            set: set(role, name),
            ids: (0..n_images).map(|n| format!("{name}/{n}.png")).collect(),
            labels: labels.to_vec(),
            predictions: predictions.to_vec(),
        };
        self.run.write_set(&file).unwrap();
        self.manifest.sets.push(ListedSet {
            set: file.set,
            n_images,
            of_images: n_images,
            content: format!("content-of-{name}"),
        });
    }

    pub(crate) fn ood(&mut self, role: &str, name: &str, n_images: usize) {
        self.set(role, name, &vec![-1; n_images], &vec![0; n_images]);
    }

    pub(crate) fn missing(&mut self, role: &str, name: &str) {
        let reason = format!("nothing at `data/{name}`");
        self.manifest.missing.push(MissingSet { set: set(role, name), reason });
    }

    fn plan(&mut self, label: &str, skipped: Option<&str>) -> PlannedDetector {
        let cells = self.manifest.sets.iter().map(|listed| PlannedCell {
            set: listed.set.clone(),
            key: format!("{label}-{}-{}", listed.set.role, listed.set.name),
        });
        let planned = PlannedDetector {
            id: label.to_owned(),
            label: label.to_owned(),
            title: label.to_uppercase(),
            family: "logits".into(),
            year: 2017,
            params: Map::from_iter([("temperature".to_owned(), json!(1.0))]),
            skipped: skipped.map(str::to_owned),
            search: None,
            cells: if skipped.is_some() { Vec::new() } else { cells.collect() },
        };
        self.manifest.detectors.push(planned.clone());
        planned
    }

    /// A detector with its scores of each set; an empty list is a cell that was not run yet.
    pub(crate) fn detector(&mut self, label: &str, scores: &[&[f32]]) {
        self.detector_at_cost(label, scores, 0.25, 0.5);
    }

    pub(crate) fn detector_at_cost(
        &mut self,
        label: &str,
        scores: &[&[f32]],
        fit_wall_s: f64,
        score_wall_s: f64,
    ) {
        let planned = self.plan(label, None);
        assert_eq!(planned.cells.len(), scores.len());
        for (cell, scores) in planned.cells.iter().zip(scores).filter(|(_, it)| !it.is_empty()) {
            let cost = (fit_wall_s, score_wall_s);
            self.record(&planned.id, &cell.key, &planned.params, &cell.set, scores, cost);
        }
    }

    fn record(
        &self,
        detector: &str,
        key: &str,
        params: &Map<String, Value>,
        set: &SetRef,
        scores: &[f32],
        (fit_wall_s, score_wall_s): (f64, f64),
    ) {
        let record = Record {
            schema: SCHEMA,
            key: key.to_owned(),
            detector: detector.to_owned(),
            params: params.clone(),
            set: set.clone(),
            seed: self.manifest.seed,
            n_images: scores.len(),
            of_images: scores.len(),
            cost: Cost {
                fit_wall_s,
                score_wall_s,
                peak_bytes: Some(12_345_678),
                device: "cpu".into(),
                gpu: None,
                threads: 2,
            },
            pack: PackId { name: "posthoc".into(), version: "0.1.0".into(), blake3: "ff".into() },
            version: "0.1.0".into(),
            warnings: Vec::new(),
        };
        self.run.write_record(&record, scores).unwrap();
    }

    /// The search of the detector planned last: the scores of the ID and the OOD validation images
    /// for each temperature from 0; an empty list is a cell that was not run yet.
    pub(crate) fn search(&mut self, label: &str, tried: &[&[&[f32]; 2]], chosen: Option<usize>) {
        let listed = |role: &str, name: &str, nth: usize| {
            let n_images = tried.iter().map(|scores| scores[nth].len()).max().unwrap_or(0);
            let content = format!("content-of-{name}");
            ListedSet { set: set(role, name), n_images, of_images: n_images, content }
        };
        let (id, ood) = (listed("id-val", "digits", 0), listed("ood-val", "words", 1));
        let mut combinations = Vec::new();
        for (temperature, scores) in tried.iter().enumerate() {
            let params = Map::from_iter([("temperature".to_owned(), json!(temperature))]);
            let key = |which: &str| format!("{label}-search-{temperature}-{which}");
            let combination = Combination { params, id: key("id"), ood: key("ood") };
            for (key, set, scores) in
                [(&combination.id, &id.set, scores[0]), (&combination.ood, &ood.set, scores[1])]
            {
                if !scores.is_empty() {
                    self.record(label, key, &combination.params, set, scores, (0.25, 0.5));
                }
            }
            combinations.push(combination);
        }
        let parameters = vec!["temperature".to_owned()];
        let planned = self.manifest.detectors.last_mut().unwrap();
        planned.search = Some(Search { id, ood, parameters, combinations, chosen });
    }

    /// A detector of which every cell without a record failed.
    pub(crate) fn failed(&mut self, label: &str, outcome: &Outcome, message: &str) {
        let planned = self.plan(label, None);
        for cell in &planned.cells {
            self.fail(&cell.key, &cell.set, outcome, message);
        }
    }

    pub(crate) fn fail(&self, key: &str, set: &SetRef, outcome: &Outcome, message: &str) {
        let failure = Failure {
            schema: SCHEMA,
            key: key.to_owned(),
            detector: "faulty".into(),
            set: set.clone(),
            outcome: outcome.clone(),
            message: message.to_owned(),
        };
        self.run.forget(key).unwrap();
        self.run.write_failure(&failure).unwrap();
    }

    pub(crate) fn skipped(&mut self, label: &str, reason: &str) {
        self.plan(label, Some(reason));
    }
}
