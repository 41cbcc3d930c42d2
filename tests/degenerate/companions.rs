//! Detectors that read further heads of a classifier, on heads that give nothing to go by.

use std::path::Path;
use std::sync::Arc;

use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{ErrorCode, ForwardOutputs, RawError};
use oodbench_engine::check::memory::{
    self, ImageNetwork, MemoryData, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_sdk::Info;

use super::uniform;

const N_IMAGES: usize = 12;
const N_CLASSES: usize = 4;
const SIDE: usize = 2;
const PER_IMAGE: usize = 3 * SIDE * SIDE;

/// Column `j` of what every head gives for image `i`; those of the classes are from 10 on.
type Value = fn(usize, usize) -> f32;

/// The heads of all trainings, which look at nothing but the number of the image.
struct Heads {
    value: Value,
    /// Columns beyond what each head should have.
    too_many: usize,
}

const HEADS: [(&str, usize); 7] = [
    ("confidence", 1),
    ("rotation", 4),
    ("logits2", N_CLASSES),
    ("variance", 6),
    ("numerators", N_CLASSES),
    ("denominator", 1),
    ("others", 3),
];

fn refused(what: &str) -> RawError {
    RawError::new(ErrorCode::BAD_INPUT, format!("this network has no {what}"))
}

impl ImageNetwork for Heads {
    fn forward(&self, _: &[f32], _: (usize, usize)) -> Result<ForwardOutputs, RawError> {
        Err(refused("logits"))
    }

    fn forward_from(&self, _: &str, _: &MemoryTensor) -> Result<ForwardOutputs, RawError> {
        Err(refused("stages"))
    }

    fn forward_with(
        &self,
        _: &Path,
        _: &[f32],
        _: (usize, usize),
    ) -> Result<ForwardOutputs, RawError> {
        Err(refused("other weights"))
    }

    fn vjp(
        &self,
        images: &[f32],
        _: (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> Result<Vec<f32>, RawError> {
        let columns = HEADS.iter().find(|(name, _)| *name == at).map(|(_, columns)| *columns);
        let columns = columns.ok_or_else(|| refused(at))? + self.too_many;
        assert_eq!(cotangent.len(), images.len() / PER_IMAGE * columns, "cotangent at {at}");
        Ok((0..images.len()).map(|i| (self.value)(i, 0)).collect())
    }

    fn normalisation(&self) -> Normalisation {
        Normalisation { mean: [0.0; 3], std: [1.0; 3] }
    }

    fn layer_names(&self) -> Vec<String> {
        HEADS.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn layer_groups(&self) -> LayerGroups {
        LayerGroups { heads: self.layer_names(), ..LayerGroups::default() }
    }

    fn layers(
        &self,
        images: &[f32],
        _: (usize, usize),
        names: &[String],
    ) -> Result<Vec<MemoryTensor>, RawError> {
        let n = images.len() / PER_IMAGE;
        let layer = |name: &String| {
            let head = HEADS.iter().find(|(head, _)| head == name);
            let columns = head.ok_or_else(|| refused(name))?.1 + self.too_many;
            let values = (0..n * columns).map(|k| (self.value)(k / columns, k % columns));
            Ok(MemoryTensor::new(values.collect(), &[n, columns]))
        };
        names.iter().map(layer).collect()
    }
}

/// Those whose example has further heads.
fn companions() -> Vec<Info> {
    let mut infos = oodbench_posthoc::infos();
    infos.retain(|info| !info.example.0.heads.is_empty());
    assert!(infos.len() >= 6, "companions have gone");
    infos
}

fn scores(info: &Info, value: Value, too_many: usize) -> Result<Vec<f32>, RawError> {
    let data = Arc::new(MemoryData {
        n_classes: N_CLASSES,
        n_features: 1,
        image_size: Some((SIDE, SIDE)),
        ..MemoryData::default()
    });
    // Other columns than those of the heads, which would agree with the classes otherwise.
    let logits =
        (0..N_IMAGES * N_CLASSES).map(|k| value(k / N_CLASSES, 10 + k % N_CLASSES)).collect();
    let images = (0..N_IMAGES * PER_IMAGE).map(|k| uniform(3, k / PER_IMAGE, k % PER_IMAGE));
    let test = MemorySplit {
        logits: MemoryTensor::new(logits, &[N_IMAGES, N_CLASSES]),
        images: MemoryTensor::new(images.collect(), &[N_IMAGES, 3, SIDE, SIDE]),
        ..MemorySplit::default()
    };
    let network: Arc<dyn ImageNetwork> = Arc::new(Heads { value, too_many });
    let host = MemoryHost::new(info.needs, Arc::clone(&data)).network(network).boxed();
    let mut detector = oodbench_posthoc::create(info.id, "{}", host)
        .unwrap_or_else(|err| panic!("create `{}`: {err}", info.id));
    memory::fit(&mut detector, info.needs, &data)?;
    let keys: Vec<u64> = (0..N_IMAGES as u64).collect();
    memory::score(&mut detector, info.needs, &test, &keys)
}

fn usual(i: usize, j: usize) -> f32 {
    4.0 * uniform(1, i, j) - 2.0
}

#[test]
fn usual_heads_are_scored_by_every_companion() {
    for info in companions() {
        let scores = scores(&info, usual, 0);
        let scores = scores.unwrap_or_else(|err| panic!("`{}`: {}", info.id, err.message));
        assert!(scores.iter().all(|score| score.is_finite()), "`{}`: {scores:?}", info.id);
        assert!(scores.iter().any(|score| *score != scores[0]), "`{}` tells nothing", info.id);
    }
}

#[test]
fn degenerate_heads_end_in_finite_scores() {
    let cases: [(&str, Value); 5] = [
        ("zeros", |_, _| 0.0),
        ("the same for all images", |_, j| j as f32),
        ("tiny numbers", |i, j| 1e-30 * usual(i, j)),
        ("huge numbers", |i, j| 1e30 * usual(i, j)),
        ("the greatest numbers", |i, j| if (i + j) % 2 == 0 { f32::MAX } else { f32::MIN }),
    ];
    for (name, value) in cases {
        for info in companions() {
            let scores = scores(&info, value, 0)
                .unwrap_or_else(|err| panic!("`{}` on {name}: {}", info.id, err.message));
            let all_finite = scores.iter().all(|score| score.is_finite());
            assert!(all_finite, "`{}` on {name}: {scores:?}", info.id);
        }
    }
}

#[test]
fn heads_that_are_not_finite_or_of_another_size_are_refused() {
    let cases: [(&str, Value); 2] = [
        ("NaN", |i, j| if i == 4 { f32::NAN } else { usual(i, j) }),
        ("infinity", |i, j| if i == 4 { f32::INFINITY } else { usual(i, j) }),
    ];
    for (name, value) in cases {
        for info in companions() {
            let err = scores(&info, value, 0).expect_err(&format!("`{}` on {name}", info.id));
            assert!(err.message.contains("row 4"), "`{}` on {name}: {}", info.id, err.message);
        }
    }
    for id in ["conf_branch", "rotpred", "mcd"] {
        let info = companions().into_iter().find(|info| info.id == id).expect("a companion");
        let err = scores(&info, usual, 1).expect_err("a column too many");
        assert!(err.message.contains("columns, got"), "`{id}`: {}", err.message);
    }
}
