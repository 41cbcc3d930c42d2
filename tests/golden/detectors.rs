//! The post-hoc detectors against OpenOOD v1.5 (commit 3c35632).
//!
//! `golden/openood/manifest.json` names the variants, their parameters and tolerances; scores are
//! the negated `conf` of the file that it names, and AUROC that of `search_results`. Detectors that
//! need more than outputs have their own set, `resnet_layers`, on a network whose weights and
//! images follow from formulas. A variant of a detector that is neither in the posthoc crate nor in
//! [`LEFT_OUT`] fails the test.
//!
//! A score may be off by `std` times the standard deviation of the reference scores of its set,
//! plus `relative` times its size. The reference computes in f32, ours in f64.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use oodbench_engine::bench::{Grid, first_greatest};
use oodbench_engine::check::memory::{
    self, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_metrics::RankedScores;
use oodbench_sdk::Needs;
use oodbench_tests::shared;
use serde_json::{Map, Value};

#[path = "detectors/companions.rs"]
mod companions;
#[path = "detectors/gradients.rs"]
mod gradients;
#[path = "detectors/layers.rs"]
mod layers;
#[path = "detectors/recorded.rs"]
mod recorded;
#[path = "detectors/resnet.rs"]
mod resnet;

/// AUROC in these files is of the reference's f32 scores.
const AUROC_TOLERANCE: f64 = 1e-4;

/// Detectors of the reference that are not here, and why.
const LEFT_OUT: [(&str, &str); 0] = [];

/// Searches in which the reference scores all combinations with what the first one has set up, and
/// how many combinations that is right for.
const SET_UP_ONCE: [(&str, usize); 2] = [("dice.multi_p", 1), ("nnguide.multi", 2)];

/// Detectors of the reference whose variants on the ResNet set are compared, file by file.
const ON_RESNET: [&[&str]; 3] = [&gradients::DETECTORS, &companions::ON_RESNET, &layers::DETECTORS];

type Tensors = HashMap<String, Tensor>;

#[test]
fn cached_outputs_give_openoods_scores() {
    let folder = shared().join("golden/openood");
    let manifest = json(&folder.join("manifest.json"));
    let name = |key: &str| manifest[key].as_str().expect("the manifest names a file").to_owned();
    let set = FeatureSet::open(&folder.join(name("features_dir")));
    let references = tensors(&folder.join(name("scores")));
    let results = json(&folder.join(name("search_results")));
    let mut report = Report::default();
    for case in manifest["variants"].as_array().expect("a list of variants") {
        let variant = case["variant"].as_str().expect("a name");
        let key = case["detector"].as_str().expect("a name");
        if LEFT_OUT.iter().any(|(left_out, _)| *left_out == key) {
            assert!(needs(key).is_none(), "{key} is here, but listed as left out");
            continue;
        }
        let (detector, params) = by_our_names(key, &case["params"]);
        let Some(needs) = needs(detector) else {
            report.failures.push(format!("{variant}: `{key}` is neither here nor left out"));
            continue;
        };
        // What a parameter search ends with is not a matter of the detector.
        if case.get("search") == Some(&Value::Bool(true)) {
            assert!(variant.starts_with("aps."), "{variant}: a search that is not called `aps.…`");
            continue;
        }
        // The reference draws images without a seed.
        if case.get("not_reproducible") == Some(&Value::Bool(true)) {
            continue;
        }
        // Scored from recorded masks or fits, which `recorded` compares.
        if case["params"].get("note").is_some() {
            assert!(recorded::VARIANTS.contains(&variant), "{variant} is compared nowhere");
            continue;
        }
        // Scored from heads that are formulas.
        if needs.contains(Needs::LAYERS) {
            assert!(companions::VARIANTS.contains(&variant), "{variant} is compared nowhere");
            continue;
        }
        let tolerance = Tolerance {
            std: case["tolerance"]["std"].as_f64().expect("a number"),
            relative: case["tolerance"]["relative"].as_f64().expect("a number"),
            absolute: 0.0,
            exceptions: None,
        };
        let host = MemoryHost::new(needs, Arc::clone(&set.data));
        let mut ours = Scorer::new(detector, &params.to_string(), needs, host);
        ours.fit(&set.data);
        let id = ours.score(&set.test);
        let mut deviations = vec![deviation(variant, "test", &id, &references, tolerance)];
        for (name, split) in &set.ood {
            let ood = ours.score(split);
            deviations.push(deviation(variant, name, &ood, &references, tolerance));
            let expected = results["scores"][variant][name]["auroc"].as_f64();
            report.auroc(variant, name, &id, &ood, expected.expect("an AUROC"));
        }
        report.scores(variant, &deviations);
    }
    report.end();
}

#[test]
fn every_variant_of_the_resnet_set_is_compared() {
    let mut forgotten = Vec::new();
    for variant in resnet::set().results["scores"].as_object().expect("a table").keys() {
        let of_search = variant.strip_prefix("aps.");
        let key = of_search.unwrap_or(variant).split('.').next().unwrap_or(variant);
        let compared = ON_RESNET.iter().any(|keys| keys.contains(&key));
        let left_out = LEFT_OUT.iter().any(|(left_out, _)| *left_out == key);
        assert!(!(compared && left_out), "{key} is compared, but listed as left out");
        if !compared && !left_out {
            forgotten.push(variant.as_str());
        }
    }
    assert!(forgotten.is_empty(), "compared nowhere: {}", forgotten.join(", "));
}

#[test]
fn a_search_chooses_what_openood_chooses() {
    let folder = shared().join("golden/openood");
    let manifest = json(&folder.join("manifest.json"));
    let name = |key: &str| manifest[key].as_str().expect("the manifest names a file").to_owned();
    let set = FeatureSet::open(&folder.join(name("features_dir")));
    let results = json(&folder.join(name("search_results")));
    let mut report = Report::default();
    for (variant, golden) in results["aps"].as_object().expect("a table of searches") {
        let detector = variant.split('.').next().unwrap_or(variant);
        let Some(needs) = needs(detector) else { continue };
        let (params, sweeps) = sweeps(&golden["sweep"]);
        let grid = Grid::over(&params, &sweeps);
        let combinations = grid.combinations.iter().map(|params| {
            Value::Array(grid.parameters.iter().map(|name| params[name].clone()).collect())
        });
        let combinations: Vec<Value> = combinations.collect();
        assert_eq!(Value::Array(combinations.clone()), golden["combinations"], "{variant}: order");
        let mut aurocs = Vec::new();
        let set_up_once = SET_UP_ONCE.iter().find(|(name, _)| name == variant);
        let n_set_up = set_up_once.map_or(grid.combinations.len(), |(_, n)| *n);
        for (nth, params) in grid.combinations.iter().enumerate().take(n_set_up) {
            let host = MemoryHost::new(needs, Arc::clone(&set.data));
            let params = Value::Object(params.clone()).to_string();
            let mut ours = Scorer::new(detector, &params, needs, host);
            ours.fit(&set.data);
            let ood = set.data.val_ood.as_ref().expect("OOD validation images");
            let (id, ood) = (ours.score(&set.data.val), ours.score(ood));
            let expected = &golden["val_metrics_fpr_auroc_auprin_auprout_acc"][nth][1];
            let expected = expected.as_f64().expect("an AUROC");
            aurocs.push(Some(report.auroc(
                variant,
                &combinations[nth].to_string(),
                &id,
                &ood,
                expected,
            )));
        }
        report.n_variants += 1;
        if set_up_once.is_some() {
            continue;
        }
        let (chosen, _) = first_greatest(&aurocs).expect("a combination");
        // A single parameter stands without a list.
        let chosen = match combinations[chosen].as_array().map(Vec::as_slice) {
            Some([single]) => single.clone(),
            _ => combinations[chosen].clone(),
        };
        println!("{variant}: {chosen} of {} combinations", combinations.len());
        assert_eq!(chosen, golden["chosen_api_first_max"], "{variant}: choice");
    }
    report.end();
}

/// Our detector for one of the reference, and its parameters.
fn by_our_names<'k>(key: &'k str, params: &Value) -> (&'k str, Value) {
    let mut params = params.clone();
    let mut with = |id: &'static str, name: &str, value: &str| {
        params[name] = Value::from(value);
        id
    };
    let id = match key {
        "ash_b" => with("ash", "variant", "b"),
        "ash_p" => with("ash", "variant", "p"),
        "ash_s" => with("ash", "variant", "s"),
        "adascale_a" => with("adascale", "variant", "a"),
        "adascale_l" => with("adascale", "variant", "l"),
        _ => key,
    };
    (id, params)
}

/// A parameter and the values that are tried.
type Sweep = (String, Vec<Value>);

/// The parameters of a search with their values, by our names: those of the reference end in
/// `_list`.
fn sweeps(golden: &Value) -> (Map<String, Value>, Vec<Sweep>) {
    let lists = golden.as_object().expect("a table of lists");
    let sweep = |(name, values): (&String, &Value)| {
        let name = name.strip_suffix("_list").unwrap_or(name).to_owned();
        (name, values.as_array().expect("a list").clone())
    };
    let sweeps: Vec<Sweep> = lists.iter().map(sweep).collect();
    (sweeps.iter().map(|(name, values)| (name.clone(), values[0].clone())).collect(), sweeps)
}

/// What a detector of the posthoc crate needs; none for one that it does not have.
fn needs(detector: &str) -> Option<Needs> {
    let infos = oodbench_posthoc::infos();
    infos.iter().find(|info| info.id == detector).map(|info| info.needs)
}

/// A detector behind the ABI, as a host has it.
struct Scorer {
    detector: oodbench_sdk::DetectorBox,
    needs: Needs,
    what: String,
}

impl Scorer {
    fn new(detector: &str, params: &str, needs: Needs, host: MemoryHost) -> Self {
        let what = format!("{detector} with {params}");
        let detector = oodbench_posthoc::create(detector, params, host.boxed())
            .unwrap_or_else(|err| panic!("create {what}: {err}"));
        Self { detector, needs, what }
    }

    fn fit(&mut self, data: &MemoryData) {
        memory::fit(&mut self.detector, self.needs, data)
            .unwrap_or_else(|err| panic!("fit {}: {}", self.what, err.message));
    }

    /// Scores in batches of another size than the reference's.
    fn score(&mut self, split: &MemorySplit) -> Vec<f32> {
        const BATCH: usize = 128;
        let all: Vec<usize> = (0..split.len()).collect();
        let mut scores = Vec::with_capacity(all.len());
        for images in all.chunks(BATCH) {
            let keys: Vec<u64> = images.iter().map(|&i| i as u64).collect();
            let batch = split.select(images);
            let of_batch = memory::score(&mut self.detector, self.needs, &batch, &keys)
                .unwrap_or_else(|err| panic!("score {}: {}", self.what, err.message));
            scores.extend(of_batch);
        }
        scores
    }
}

/// How far a score may be off.
#[derive(Clone, Copy)]
struct Tolerance {
    /// In standard deviations of the set's reference scores.
    std: f64,
    /// In parts of the reference score.
    relative: f64,
    absolute: f64,
    /// What few of the images may reach instead.
    exceptions: Option<Exceptions>,
}

/// Images that rounding throws further off than the others.
#[derive(Clone, Copy)]
struct Exceptions {
    /// Part of the images.
    at_most: f64,
    /// In parts of the reference score.
    relative: f64,
}

/// The worst deviation of one set.
struct Deviation {
    what: String,
    /// As a part of what is allowed.
    of_allowed: f64,
    /// In standard deviations.
    stds: f64,
    /// Images that needed the exception.
    n_exceptions: usize,
}

fn deviation(
    variant: &str,
    set: &str,
    ours: &[f32],
    references: &Tensors,
    tolerance: Tolerance,
) -> Deviation {
    let key = format!("{variant}/{set}.conf");
    let expected: Vec<f64> = numbers(references, &key).iter().map(|conf| -conf).collect();
    assert_eq!(ours.len(), expected.len(), "{key}: number of scores");
    let n = expected.len() as f64;
    let mean = expected.iter().sum::<f64>() / n;
    let std = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let what = format!("{variant}/{set}");
    let mut worst = Deviation { what, of_allowed: 0.0, stds: 0.0, n_exceptions: 0 };
    let most = tolerance.exceptions.map_or(0.0, |exceptions| exceptions.at_most * n) as usize;
    for (i, (&ours, expected)) in ours.iter().zip(expected).enumerate() {
        assert!(ours.is_finite(), "{key}: score of image {i} is {ours}");
        let off = (f64::from(ours) - expected).abs();
        let allowed = tolerance.std * std + tolerance.relative * expected.abs();
        let mut of_allowed = off / allowed.max(tolerance.absolute);
        if let Some(exceptions) = tolerance.exceptions
            && of_allowed > 1.0
            && worst.n_exceptions < most
        {
            worst.n_exceptions += 1;
            of_allowed = off / (exceptions.relative * expected.abs());
        }
        worst.of_allowed = worst.of_allowed.max(of_allowed);
        worst.stds = worst.stds.max(off / std);
    }
    worst
}

/// What was compared, and what was off.
#[derive(Default)]
struct Report {
    n_variants: usize,
    n_aurocs: usize,
    worst: BTreeMap<String, (f64, f64)>,
    worst_auroc: (f64, String),
    failures: Vec<String>,
}

impl Report {
    fn scores(&mut self, variant: &str, deviations: &[Deviation]) {
        self.n_variants += 1;
        for deviation in deviations {
            let Deviation { what, of_allowed, stds, n_exceptions } = deviation;
            let worst = self.worst.entry(variant.to_owned()).or_default();
            *worst = (worst.0.max(*of_allowed), worst.1.max(*stds));
            if *n_exceptions > 0 {
                println!("{what}: {n_exceptions} images are exceptions");
            }
            if *of_allowed > 1.0 {
                self.failures.push(format!(
                    "{what}: off by {stds:.1e} standard deviations, {of_allowed:.1} times what is allowed"
                ));
            }
        }
    }

    /// Compares the AUROC, and returns ours.
    fn auroc(&mut self, variant: &str, set: &str, id: &[f32], ood: &[f32], expected: f64) -> f64 {
        self.auroc_within(AUROC_TOLERANCE, variant, set, id, ood, expected)
    }

    fn auroc_within(
        &mut self,
        tolerance: f64,
        variant: &str,
        set: &str,
        id: &[f32],
        ood: &[f32],
        expected: f64,
    ) -> f64 {
        self.n_aurocs += 1;
        let ranked = RankedScores::new(id, ood).expect("finite scores");
        let ours = ranked.auroc().expect("both sets have images");
        let off = (ours - expected).abs();
        if off > self.worst_auroc.0 {
            self.worst_auroc = (off, format!("{variant}/{set}"));
        }
        if off > tolerance {
            self.failures.push(format!("{variant}/{set}: AUROC expected {expected}, got {ours}"));
        }
        ours
    }

    /// Fails with everything that was off.
    fn end(self) {
        for (variant, (of_allowed, stds)) in &self.worst {
            println!(
                "{variant}: {stds:.1e} standard deviations, {of_allowed:.3} of what is allowed"
            );
        }
        let (off, at) = &self.worst_auroc;
        println!(
            "{} variants, {} AUROCs, worst off by {off:.1e} ({at})",
            self.n_variants, self.n_aurocs
        );
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert!(self.n_variants > 0, "the reference has no variant of any detector that is here");
    }
}

/// Exported outputs of a classifier.
struct FeatureSet {
    data: Arc<MemoryData>,
    test: MemorySplit,
    /// By name, in the order of names.
    ood: BTreeMap<String, MemorySplit>,
}

impl FeatureSet {
    fn open(folder: &Path) -> Self {
        let file = |name: &str| split(&tensors(&folder.join(format!("{name}.safetensors"))));
        let head = tensors(&folder.join("head.safetensors"));
        let (n_classes, n_features) = head["weight"].dims2().expect("a matrix");
        let data = MemoryData {
            n_classes,
            n_features,
            image_size: None,
            head: Some(MemoryHead {
                weight: array(&head["weight"]).data,
                bias: array(&head["bias"]).data,
            }),
            train: file("train"),
            val: file("val"),
            val_ood: Some(file("ood_val")),
        };
        let mut ood = BTreeMap::new();
        for group in ["near", "far"] {
            for entry in folder.join(group).read_dir().expect("a folder") {
                let path = entry.expect("an entry").path();
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                ood.insert(name, split(&tensors(&path)));
            }
        }
        Self { data: Arc::new(data), test: file("test"), ood }
    }
}

fn split(tensors: &Tensors) -> MemorySplit {
    MemorySplit {
        labels: tensors.get("labels").map(integers).unwrap_or_default(),
        logits: array(&tensors["logits"]),
        features: array(&tensors["features"]),
        images: MemoryTensor::default(),
    }
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
}

fn tensors(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
}

fn array(tensor: &Tensor) -> MemoryTensor {
    let data = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32 numbers");
    MemoryTensor::new(data, tensor.dims())
}

/// The AUROC of the reference's scores of `test` against those of another set, in f32 as it has
/// them.
fn auroc_of_theirs(references: &Tensors, variant: &str, ood: &str) -> f64 {
    let [id, ood] = ["test", ood].map(|set| -> Vec<f32> {
        let conf = numbers(references, &format!("{variant}/{set}.conf"));
        conf.iter().map(|conf| -conf as f32).collect()
    });
    let ranked = RankedScores::new(&id, &ood).expect("finite scores");
    ranked.auroc().expect("both sets have images")
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.to_vec1::<i64>().expect("whole numbers")
}

fn numbers(tensors: &Tensors, key: &str) -> Vec<f64> {
    let tensor = tensors.get(key).unwrap_or_else(|| panic!("no tensor `{key}`"));
    tensor
        .to_dtype(DType::F64)
        .and_then(|t| t.flatten_all()?.to_vec1())
        .unwrap_or_else(|err| panic!("tensor `{key}`: {err}"))
}
