//! Detectors that read further heads. The reference scored heads that are formulas of logits and
//! features; here a network that gives the same heads stands behind the host. G-ODIN runs on the
//! images and the backbone of the ResNet set, loaded from a state dict as its network writes one.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use oodbench_engine::check::memory::{
    ImageNetwork, MemoryData, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{Classifier, Normalisation};
use oodbench_nn::formula;
use oodbench_nn::heads::group_log_probabilities;
use oodbench_sdk::__private::abi::message::{LayerGroups, Normalisation as RawNormalisation};
use oodbench_sdk::__private::abi::{ErrorCode, ForwardOutputs, RawError};
use serde_json::{Value, json};

use super::{
    Exceptions, FeatureSet, Report, Scorer, Tolerance, deviation, json as read_json, needs, resnet,
    shared, tensors,
};

/// The variants whose heads are formulas.
pub const VARIANTS: [&str; 6] = ["conf_branch", "mcd", "mos", "rotpred", "rts.msp", "rts.var"];

/// Those of the ResNet set.
pub const ON_RESNET: [&str; 1] = ["godin"];

/// Height and width of the images of [`FormulaHeads`].
const SIDE: usize = 2;

/// Gives heads that are formulas of recorded outputs. Its images say which output is meant: the
/// first channel has a mark in the upper left corner, which tells how it was turned, and the others
/// are the number of the set and of the image.
struct FormulaHeads {
    sets: Vec<MemorySplit>,
}

fn failed(message: impl ToString) -> RawError {
    RawError::new(ErrorCode::FAILED, message.to_string())
}

/// The images of a set.
fn images(set: usize, n: usize) -> MemoryTensor {
    let image = |i: usize| {
        let mut values = vec![0.0; 3 * SIDE * SIDE];
        values[0] = 1.0;
        values[SIDE * SIDE..2 * SIDE * SIDE].fill(set as f32);
        values[2 * SIDE * SIDE..].fill(i as f32);
        values
    };
    MemoryTensor::new((0..n).flat_map(image).collect(), &[n, 3, SIDE, SIDE])
}

impl FormulaHeads {
    /// Logits and features that an image stands for, and by how many quarters it is turned.
    fn meant(&self, image: &[f32]) -> (&[f32], &[f32], usize) {
        let (mark, set, i) = (&image[..4], image[4] as usize, image[8] as usize);
        let mark = mark.iter().position(|x| *x == 1.0).expect("a mark in a corner");
        // Counter-clockwise from the upper left corner.
        let quarters = [0, 3, 1, 2][mark];
        let MemorySplit { logits, features, .. } = &self.sets[set];
        let row = |tensor: &MemoryTensor| {
            let n = tensor.row_len();
            i * n..(i + 1) * n
        };
        (&logits.data[row(logits)], &features.data[row(features)], quarters)
    }

    fn head(&self, name: &str, image: &[f32]) -> Result<Vec<f32>, RawError> {
        let (l, h, quarters) = self.meant(image);
        Ok(match name {
            "confidence" => {
                let sum: f64 = h.iter().map(|&x| f64::from(x)).sum();
                vec![(sum / h.len() as f64 - 1.0) as f32]
            }
            "logits2" => l.iter().zip(l.iter().rev()).map(|(a, b)| 0.8 * a + 0.3 * b).collect(),
            "rotation" => {
                let one_hot = |r: usize| if r == quarters { 2.0 } else { 0.0 };
                (0..4).map(|r| 0.5 * l[r] + one_hot(r)).collect()
            }
            "variance" => l.iter().map(|l| 0.1 + l * l).collect(),
            "others" => {
                const SIZES: [usize; 3] = [4, 3, 3];
                let mut grouped = Vec::new();
                let mut rest = l;
                for size in SIZES {
                    let (group, others) = rest.split_at(size);
                    let max = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    grouped.push(0.5 - 0.5 * max);
                    grouped.extend(group);
                    rest = others;
                }
                let n = grouped.len();
                let grouped = Tensor::from_vec(grouped, (1, n), &Device::Cpu).map_err(failed)?;
                let (others, _) = group_log_probabilities(&grouped, &SIZES).map_err(failed)?;
                others.flatten_all().and_then(|others| others.to_vec1()).map_err(failed)?
            }
            other => return Err(failed(format!("there is no head `{other}`"))),
        })
    }
}

impl ImageNetwork for FormulaHeads {
    fn forward(&self, _images: &[f32], _size: (usize, usize)) -> Result<ForwardOutputs, RawError> {
        Err(failed("nothing but heads is given"))
    }

    fn forward_from(&self, at: &str, _: &MemoryTensor) -> Result<ForwardOutputs, RawError> {
        Err(failed(format!("there is no stage `{at}`")))
    }

    fn forward_with(
        &self,
        weights: &Path,
        _images: &[f32],
        _size: (usize, usize),
    ) -> Result<ForwardOutputs, RawError> {
        Err(failed(format!("there are no weights `{}`", weights.display())))
    }

    fn vjp(
        &self,
        _images: &[f32],
        _size: (usize, usize),
        at: &str,
        _cotangent: &[f32],
    ) -> Result<Vec<f32>, RawError> {
        Err(failed(format!("there is no gradient at `{at}`")))
    }

    fn normalisation(&self) -> RawNormalisation {
        RawNormalisation { mean: [0.0; 3], std: [1.0; 3] }
    }

    fn layer_names(&self) -> Vec<String> {
        ["confidence", "logits2", "rotation", "variance", "others"].map(str::to_owned).into()
    }

    fn layer_groups(&self) -> LayerGroups {
        LayerGroups { heads: self.layer_names(), ..LayerGroups::default() }
    }

    fn layers(
        &self,
        images: &[f32],
        (height, width): (usize, usize),
        names: &[String],
    ) -> Result<Vec<MemoryTensor>, RawError> {
        let all: Vec<&[f32]> = images.chunks_exact(3 * height * width).collect();
        let layer = |name: &String| {
            let rows: Result<Vec<Vec<f32>>, RawError> =
                all.iter().map(|image| self.head(name, image)).collect();
            let rows = rows?;
            let columns = rows.first().map_or(0, Vec::len);
            Ok(MemoryTensor::new(rows.concat(), &[all.len(), columns]))
        };
        names.iter().map(layer).collect()
    }
}

#[test]
fn further_heads_give_openoods_scores() {
    let folder = shared().join("golden/openood");
    let manifest = read_json(&folder.join("manifest.json"));
    let set = FeatureSet::open(&folder.join("features_dir"));
    let references = tensors(&folder.join("scores_public.safetensors"));
    let results = read_json(&folder.join("aps_public.json"));
    let mut sets: BTreeMap<&str, MemorySplit> =
        set.ood.iter().map(|(name, split)| (name.as_str(), split.clone())).collect();
    sets.insert("test", set.test.clone());
    for (nth, split) in sets.values_mut().enumerate() {
        split.images = images(nth, split.len());
    }
    let network = Arc::new(FormulaHeads { sets: sets.values().cloned().collect() });
    let data = Arc::new(MemoryData {
        image_size: Some((SIDE, SIDE)),
        n_classes: set.data.n_classes,
        n_features: set.data.n_features,
        ..MemoryData::default()
    });
    let mut report = Report::default();
    let cases = manifest["variants"].as_array().expect("a list of variants");
    for variant in VARIANTS {
        let case = cases.iter().find(|case| case["variant"] == variant).expect("a variant");
        let detector = case["detector"].as_str().expect("a name");
        let needs = needs(detector).unwrap_or_else(|| panic!("there is no `{detector}`"));
        let tolerance = Tolerance {
            std: case["tolerance"]["std"].as_f64().expect("a number"),
            relative: case["tolerance"]["relative"].as_f64().expect("a number"),
            absolute: 0.0,
            exceptions: None,
        };
        let host = MemoryHost::new(needs, Arc::clone(&data)).network(Arc::clone(&network) as _);
        let mut ours = Scorer::new(detector, &case["params"].to_string(), needs, host);
        ours.fit(&data);
        let scores: BTreeMap<&str, Vec<f32>> =
            sets.iter().map(|(name, split)| (*name, ours.score(split))).collect();
        let mut deviations = Vec::new();
        for (name, of_set) in &scores {
            deviations.push(deviation(variant, name, of_set, &references, tolerance));
            if *name != "test" {
                let expected = results["scores"][variant][*name]["auroc"].as_f64();
                let expected = expected.expect("an AUROC");
                report.auroc(variant, name, &scores["test"], of_set, expected);
            }
        }
        report.scores(variant, &deviations);
    }
    report.end();
}

/// G-ODIN's network: the ResNet set's backbone, and heads from streams of their own.
fn godin(bias: &Tensor, normalisation: Normalisation) -> Classifier {
    let n_classes = bias.dim(0).expect("a vector");
    let of_backbone = resnet::weights(bias).into_iter().filter(|(key, _)| !key.starts_with("fc."));
    let mut tensors: HashMap<String, Tensor> =
        of_backbone.map(|(key, tensor)| (format!("backbone.{key}"), tensor)).collect();
    let n_features = 512;
    let heads: [(&str, &[usize]); 7] = [
        ("h.h.weight", &[n_classes, n_features]),
        ("g.0.weight", &[1, n_features]),
        ("g.0.bias", &[1]),
        ("g.1.weight", &[1]),
        ("g.1.bias", &[1]),
        ("g.1.running_mean", &[1]),
        ("g.1.running_var", &[1]),
    ];
    for (key, shape) in heads {
        let values = formula::weight(&format!("godin/{key}"), shape);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("values of this shape");
        tensors.insert(key.to_owned(), tensor);
    }
    let bytes = safetensors::serialize(&tensors, None).expect("weights in f32");
    let weights = StateDict::from_bytes(&bytes, Path::new("formula")).expect("a state dict");
    Classifier::load(&weights, None, n_classes, normalisation, &Device::Cpu).expect("a classifier")
}

#[test]
fn a_quotients_numerator_gives_openoods_scores() {
    let set = resnet::set();
    let network: Arc<dyn ImageNetwork> =
        Arc::new(godin(&set.references["net.fc.bias"], resnet::NORMALISATION));
    // As for ODIN: a step takes the sign of a gradient, which rounding changes where it is near 0.
    let with_a_step = Tolerance {
        std: 1e-4,
        relative: 1e-6,
        absolute: 5e-8,
        exceptions: Some(Exceptions { at_most: 0.125, relative: 1e-4 }),
    };
    let without = Tolerance { exceptions: None, ..with_a_step };
    let cases: [(&str, Value, Tolerance); 2] =
        [("godin.h", json!({}), with_a_step), ("godin.h.noise0", json!({"noise": 0.0}), without)];
    let mut report = Report::default();
    for (variant, params, tolerance) in cases {
        let needs = needs("godin").expect("a detector");
        let host = MemoryHost::new(needs, Arc::clone(&set.data)).network(Arc::clone(&network));
        let mut ours = Scorer::new("godin", &params.to_string(), needs, host);
        ours.fit(&set.data);
        let (id, ood) = (ours.score(&set.test), ours.score(&set.ood));
        let deviations = [
            deviation(variant, "test", &id, &set.references, tolerance),
            deviation(variant, "ood", &ood, &set.references, tolerance),
        ];
        report.scores(variant, &deviations);
        let expected = &set.results["scores"][variant]["metrics_fpr_auroc_auprin_auprout_acc"][1];
        report.auroc(variant, "ood", &id, &ood, expected.as_f64().expect("an AUROC"));
    }
    report.end();
}
