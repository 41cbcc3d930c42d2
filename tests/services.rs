//! Services of the host that go through extensions, as a detector written with the SDK uses them.

use std::sync::Arc;

use oodbench_engine::check::memory::{
    self, ImageNetwork, MemoryData, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_sdk::prelude::*;
use oodbench_sdk::{Forward, ImageBatch};
use oodbench_tests::network::{classifier, formula_weights};

const SIDE: usize = 8;
const N_CLASSES: usize = 3;
const ARCHITECTURE: Architecture =
    Architecture::ResNetCifar { blocks: 1, width: 4, projection: true };
const NORMALISATION: Normalisation =
    Normalisation { mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 1.0] };

/// Scores images by a service, whose name is its parameter: by how far outputs are from those of an
/// ordinary pass.
struct Probe {
    service: String,
    host: Host,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
struct Params {
    service: String,
}

/// The greatest difference of logits or features.
fn off(a: &Forward, b: &Forward) -> f32 {
    let pairs = [(a.logits(), b.logits()), (a.features(), b.features())];
    let differences = pairs.into_iter().flat_map(|(a, b)| {
        assert_eq!((a.n_rows(), a.n_cols()), (b.n_rows(), b.n_cols()));
        a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs())
    });
    differences.fold(0.0, f32::max)
}

impl Probe {
    fn value(&self, images: ImageBatch<'_>) -> Result<f32> {
        let host = &self.host;
        match self.service.as_str() {
            "normalisation" => Ok(host.normalisation()?.mean[1]),
            "layers" => {
                let names = host.layer_names()?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let together = host.layers(images, &names)?;
                for (layer, name) in together.iter().zip(&names) {
                    assert_eq!(layer.name, *name);
                    assert_eq!(layer.data, host.layers(images, &[name])?[0].data, "{name}");
                }
                Ok(together.len() as f32)
            }
            "forward_from" => {
                let usual = host.forward(images)?;
                let stages = host.layer_groups()?.stages;
                let names: Vec<&str> = stages.iter().map(String::as_str).collect();
                let mut greatest = 0.0f32;
                for layer in host.layers(images, &names)? {
                    let from = host.forward_from(&layer.name, &layer.data, &layer.shape)?;
                    greatest = greatest.max(off(&from, &usual));
                }
                Ok(greatest)
            }
            "forward_with" => {
                Ok(off(&host.forward_with("weights", images)?, &host.forward(images)?))
            }
            "a map" => host.forward_from("conv1", &[0.0; 4], &[1, 4, 1, 1]).map(|_| 0.0),
            "a shape" => host.forward_from("stem", &[0.0; 4], &[1, 4, 1, 2]).map(|_| 0.0),
            "nothing" => {
                let none = host.forward_from("stem", &[], &[0, 4, 2, 2])?;
                Ok(none.logits().n_rows() as f32)
            }
            other => Err(Error::parameter("service", "a service", other)),
        }
    }
}

impl Detector for Probe {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "probe",
            params: vec![Param::new("service", "which one", "")],
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { service: params.service, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        scores.fill(self.value(batch.images()?)?);
        Ok(())
    }
}

const ALL: Needs = Needs::IMAGES.and(Needs::LAYERS).and(Needs::FORWARD).and(Needs::ASSETS);

/// What the probe scores two images by, or the error.
fn probe(
    service: &str,
    needs: Needs,
    weights: Option<&std::path::Path>,
) -> std::result::Result<f32, String> {
    let network = classifier(&formula_weights(ARCHITECTURE, N_CLASSES), N_CLASSES, NORMALISATION);
    let images: Vec<f32> =
        (0..2 * 3 * SIDE * SIDE).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
    let batch = MemorySplit {
        images: MemoryTensor::new(images, &[2, 3, SIDE, SIDE]),
        ..MemorySplit::default()
    };
    let data = MemoryData { image_size: Some((SIDE, SIDE)), ..MemoryData::default() };
    let mut host =
        MemoryHost::new(needs, Arc::new(data)).network(Arc::new(network) as Arc<dyn ImageNetwork>);
    if let Some(weights) = weights {
        host = host.asset("weights", weights.to_owned());
    }
    let params = format!(r#"{{"service": "{service}"}}"#);
    let mut detector = oodbench_sdk::create::<Probe>(&params, host.boxed()).expect("a probe");
    let scores = memory::score(&mut detector, needs, &batch, &[0, 1]);
    scores.map(|scores| scores[0]).map_err(|err| err.message.into_string())
}

#[test]
fn a_detector_sees_layers_and_goes_on_from_stages() {
    assert_eq!(probe("normalisation", ALL, None), Ok(0.25));
    assert_eq!(probe("layers", ALL, None), Ok(13.0));
    assert_eq!(probe("forward_from", ALL, None), Ok(0.0));
    assert_eq!(probe("nothing", ALL, None), Ok(0.0));
}

#[test]
fn a_detector_runs_other_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("other.safetensors");
    let mut weights = formula_weights(ARCHITECTURE, N_CLASSES);
    let mut write = |bias: f64| {
        let moved = weights["linear.bias"].affine(1.0, bias).expect("a bias");
        weights.insert("linear.bias".to_owned(), moved);
        safetensors::serialize_to_file(&weights, None, &path).expect("a file");
        probe("forward_with", ALL, Some(&path)).expect("a score")
    };
    // The same weights, and then logits that are greater by one half.
    assert_eq!(write(0.0), 0.0);
    assert!((write(0.5) - 0.5).abs() < 1e-6);
    std::fs::write(&path, "no weights").expect("a file");
    let error = probe("forward_with", ALL, Some(&path)).expect_err("no weights");
    assert!(error.contains("other.safetensors"), "{error}");
    let error = probe("forward_with", ALL, None).expect_err("no file");
    assert_eq!(error, "parameter `weights` expected a file, got none");
}

#[test]
fn what_cannot_be_done_is_said() {
    let error = |service, needs| probe(service, needs, None).expect_err("an error");
    assert_eq!(
        error("a map", ALL),
        "stage expected one of stem, layer1, layer2, layer3, got `conv1`"
    );
    assert_eq!(error("a shape", ALL), "activation expected [1, 4, 1, 2], got 4 values");
    assert_eq!(
        error("a map", Needs::IMAGES.and(Needs::FORWARD)),
        "service `forward_from` was not asked for: add `layers` to the needs"
    );
    assert_eq!(
        error("normalisation", Needs::IMAGES),
        "service `normalisation` was not asked for: add `forward` to the needs"
    );
}
