//! The post-hoc detectors against OpenOOD v1.5 (commit 3c35632).
//!
//! `golden/openood/manifest.json` names the variants, their parameters and tolerances; scores are
//! the negated `conf` of the file that it names, and AUROC that of `search_results`. Gradient
//! detectors have their own set, `resnet_layers`, on a network whose weights and images follow
//! from formulas. Which detectors are tried follows from the list of the posthoc crate: a variant
//! of one of them that cannot be run fails the test.
//!
//! A score may be off by `std` times the standard deviation of the reference scores of its set,
//! plus `relative` times its size. The reference computes in f32, ours in f64.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use oodbench_engine::check::memory::{
    self, ImageNetwork, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_metrics::RankedScores;
use oodbench_sdk::Needs;
use oodbench_tests::shared;
use serde_json::Value;

use resnet::ResNetSet;

#[path = "detectors/resnet.rs"]
mod resnet;

/// AUROC in these files is of the reference's f32 scores.
const AUROC_TOLERANCE: f64 = 1e-4;

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
        let Some(needs) = needs(case["detector"].as_str().expect("a name")) else { continue };
        // What a parameter search ends with is not a matter of the detector.
        if case.get("search") == Some(&Value::Bool(true)) {
            assert!(variant.starts_with("aps."), "{variant}: a search that is not called `aps.…`");
            continue;
        }
        let detector = case["detector"].as_str().expect("a name");
        let tolerance = Tolerance {
            std: case["tolerance"]["std"].as_f64().expect("a number"),
            relative: case["tolerance"]["relative"].as_f64().expect("a number"),
            absolute: 0.0,
        };
        let host = MemoryHost::new(needs, Arc::clone(&set.data));
        let mut ours = Scorer::new(detector, &case["params"].to_string(), needs, host);
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
fn gradients_give_openoods_scores() {
    let folder = shared().join("golden/openood");
    let references = tensors(&folder.join("resnet_layers.safetensors"));
    let results = json(&folder.join("resnet_layers.json"));
    let set = ResNetSet::new(&references);
    let mut report = Report::default();
    let mut n_signs = 0;
    for (variant, result) in results["scores"].as_object().expect("a table of variants") {
        let (detector, settings) = variant.split_once('.').unwrap_or((variant, ""));
        let Some(needs) = needs(detector) else { continue };
        let host = MemoryHost::new(needs, Arc::clone(&set.data))
            .network(Arc::clone(&set.network) as Arc<dyn ImageNetwork>);
        let params = resnet::params(detector, settings);
        let mut ours = Scorer::new(detector, &params.to_string(), needs, host);
        ours.fit(&set.data);
        // At T = 1000 the scores of a set span 1e-4, a few units in the last place of f32.
        let tolerance = Tolerance { std: 1e-4, relative: 1e-6, absolute: 5e-8 };
        let (mut id, mut ood) = (ours.score(&set.test), ours.score(&set.ood));
        for (name, scores, split) in [("test", &mut id, &set.test), ("ood", &mut ood, &set.ood)] {
            let key = format!("{variant}/{name}.conf");
            let (expected, allowed) = expected(&references, &key, tolerance);
            for (i, score) in scores.iter_mut().enumerate() {
                let is_close = |score: f32| (f64::from(score) - expected[i]).abs() <= allowed[i];
                if is_close(*score) {
                    continue;
                }
                let others = set.network.scores_of_other_signs(split, i, &params);
                if let Some(other) = others.into_iter().find(|&other| is_close(other)) {
                    println!("{key}: image {i} agrees but for the sign of one pixel's step");
                    *score = other;
                    n_signs += 1;
                }
            }
        }
        let deviations = [
            deviation(variant, "test", &id, &references, tolerance),
            deviation(variant, "ood", &ood, &references, tolerance),
        ];
        report.scores(variant, &deviations);
        let expected = result["metrics_fpr_auroc_auprin_auprout_acc"][1].as_f64();
        report.auroc(variant, "ood", &id, &ood, expected.expect("an AUROC"));
    }
    // Chance explains a few signs, and hides nothing else as long as they are few.
    let n_images = report.n_variants * (set.test.len() + set.ood.len());
    assert!(n_signs * 20 <= n_images, "{n_signs} of {n_images} images differ in a sign");
    report.end();
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
}

/// The worst deviation of one set.
struct Deviation {
    what: String,
    /// As a part of what is allowed.
    of_allowed: f64,
    /// In standard deviations.
    stds: f64,
}

fn deviation(
    variant: &str,
    set: &str,
    ours: &[f32],
    references: &Tensors,
    tolerance: Tolerance,
) -> Deviation {
    let key = format!("{variant}/{set}.conf");
    let (expected, allowed) = expected(references, &key, tolerance);
    assert_eq!(ours.len(), expected.len(), "{key}: number of scores");
    let std = standard_deviation(&expected);
    let mut worst = Deviation { what: format!("{variant}/{set}"), of_allowed: 0.0, stds: 0.0 };
    for (i, &ours) in ours.iter().enumerate() {
        assert!(ours.is_finite(), "{key}: score of image {i} is {ours}");
        let off = (f64::from(ours) - expected[i]).abs();
        worst.of_allowed = worst.of_allowed.max(off / allowed[i]);
        worst.stds = worst.stds.max(off / std);
    }
    worst
}

/// Reference scores, and how far each may be off.
fn expected(references: &Tensors, key: &str, tolerance: Tolerance) -> (Vec<f64>, Vec<f64>) {
    let expected: Vec<f64> = numbers(references, key).iter().map(|conf| -conf).collect();
    let std = standard_deviation(&expected);
    let allowed = expected.iter().map(|score| {
        (tolerance.std * std + tolerance.relative * score.abs()).max(tolerance.absolute)
    });
    let allowed = allowed.collect();
    (expected, allowed)
}

fn standard_deviation(xs: &[f64]) -> f64 {
    let n = xs.len() as f64;
    let mean = xs.iter().sum::<f64>() / n;
    (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
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
            let Deviation { what, of_allowed, stds } = deviation;
            let worst = self.worst.entry(variant.to_owned()).or_default();
            *worst = (worst.0.max(*of_allowed), worst.1.max(*stds));
            if *of_allowed > 1.0 {
                self.failures.push(format!(
                    "{what}: off by {stds:.1e} standard deviations, {of_allowed:.1} times what is allowed"
                ));
            }
        }
    }

    fn auroc(&mut self, variant: &str, set: &str, id: &[f32], ood: &[f32], expected: f64) {
        self.n_aurocs += 1;
        let ranked = RankedScores::new(id, ood).expect("finite scores");
        let ours = ranked.auroc().expect("both sets have images");
        let off = (ours - expected).abs();
        if off > self.worst_auroc.0 {
            self.worst_auroc = (off, format!("{variant}/{set}"));
        }
        if off > AUROC_TOLERANCE {
            self.failures.push(format!("{variant}/{set}: AUROC expected {expected}, got {ours}"));
        }
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
#[test]
fn dbg_f64() {
    use oodbench_nn::{arch::{Architecture, Taps}, layers::Mode, formula};
    use candle_nn::VarBuilder;
    use candle_core::Var;
    let folder = shared().join("golden/openood");
    let references = tensors(&folder.join("resnet_layers.safetensors"));
    let set = ResNetSet::new(&references);
    let arch = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
    let rec = resnet::weights(&references["net.fc.bias"]);
    let w64: HashMap<String, Tensor> = rec.iter().map(|(k, t)| (k.clone(), t.to_dtype(DType::F64).unwrap())).collect();
    let net = arch.build(10, VarBuilder::from_tensors(w64, DType::F64, &Device::Cpu)).unwrap();
    let _ = formula::uniform("x", 1, 0.0, 1.0);
    let refs = numbers(&references, "odin.T1.eps0.0014/test.conf");
    let norm = |x: &Tensor| { let m = Tensor::new(&[0.4914f64, 0.4822, 0.4465], &Device::Cpu).unwrap().reshape((1,3,1,1)).unwrap();
        let s = Tensor::new(&[0.2470f64, 0.2435, 0.2616], &Device::Cpu).unwrap().reshape((1,3,1,1)).unwrap();
        x.broadcast_sub(&m).unwrap().broadcast_div(&s).unwrap() };
    for i in [0usize, 4, 25, 7, 8] {
        let img = set.test.images.select(&[i]).data;
        let x64: Vec<f64> = img.iter().map(|&v| v as f64).collect();
        let var = Var::from_tensor(&Tensor::from_vec(x64.clone(), (1,3,32,32), &Device::Cpu).unwrap()).unwrap();
        let out = net.forward(&norm(&var), Mode::Eval, &mut Taps::none()).unwrap();
        let logits: Vec<f64> = out.logits.flatten_all().unwrap().to_vec1().unwrap();
        let sm = |l: &[f64]| { let m = l.iter().fold(f64::MIN, |a,&b| a.max(b)); let e: Vec<f64> = l.iter().map(|x| (x-m).exp()).collect(); let s: f64 = e.iter().sum(); e.iter().map(|e| e/s).collect::<Vec<f64>>() };
        let p = sm(&logits); let mx = p.iter().fold(0f64, |a,&b| a.max(b));
        let cot: Vec<f64> = p.iter().map(|&q| if q == mx { q - 1.0 } else { q }).collect();
        let c = Tensor::from_vec(cot.clone(), (1,10), &Device::Cpu).unwrap();
        let g: Vec<f64> = (out.logits * c).unwrap().sum_all().unwrap().backward().unwrap().get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let cot32: Vec<f32> = cot.iter().map(|&v| v as f32).collect();
        let g32 = set.network.vjp(&img, (32,32), "logits", &cot32).unwrap();
        let rms = (g.iter().map(|v| v*v).sum::<f64>() / 3072.0).sqrt();
        let worst = g.iter().zip(&g32).map(|(a,&b)| (a - b as f64).abs()).fold(0.0, f64::max) / rms;
        let flips: Vec<(usize, f64)> = (0..3072).filter(|&j| (g[j] >= 0.0) != (g32[j] >= 0.0)).map(|j| (j, g[j]/rms)).collect();
        let score = |moved: Vec<f64>| { let t = Tensor::from_vec(moved, (1,3,32,32), &Device::Cpu).unwrap();
            let l: Vec<f64> = net.forward(&norm(&t), Mode::Eval, &mut Taps::none()).unwrap().logits.flatten_all().unwrap().to_vec1().unwrap(); sm(&l).iter().fold(0f64, |a,&b| a.max(b)) };
        let m64: Vec<f64> = (0..3072).map(|j| x64[j] - 0.0014 * if g[j] >= 0.0 { 1.0 } else { -1.0 }).collect();
        let m32: Vec<f64> = (0..3072).map(|j| x64[j] - 0.0014 * if g32[j] >= 0.0 { 1.0 } else { -1.0 }).collect();
        let (a, b) = (score(m64.clone()), score(m32));
        println!("DBG image {i}: f64 {a:.7} with f32 signs {b:.7} reference {:.7}; grad off {worst:.1e} rms, flips {flips:?}; cot {cot:.3?}", refs[i]);
        // which single flips reconcile f64 with the reference
        let mut best = (f64::MAX, 0, 0.0);
        let mut order: Vec<usize> = (0..3072).collect(); order.sort_by(|&a, &b| g[a].abs().total_cmp(&g[b].abs()));
        for &j in order.iter().take(40) { let mut m = m64.clone(); m[j] = x64[j] + 0.0014 * if g[j] >= 0.0 { 1.0 } else { -1.0 }; let s = score(m); if (s - refs[i]).abs() < best.0 { best = ((s - refs[i]).abs(), j, g[j]/rms); } }
        println!("DBG    best single flip: off {:.1e} at {} rel {:.1e}", best.0, best.1, best.2);
    }
}
