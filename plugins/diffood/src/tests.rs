//! Parameters, the worked example, and variants against detectors of their own.

use std::path::PathBuf;

use oodbench_diffusion::sampler::{Indexing, Method};

use super::*;

const SIDE: usize = 4;
const LEN: usize = 3 * SIDE * SIDE;

fn params(json: &str) -> Result<Params> {
    let params: Params = oodbench_sdk::serde_json::from_str(json)?;
    params.check().map(|()| params)
}

#[test]
fn the_last_timestep_is_compared_with_the_first_by_default() {
    let compared = |json: &str| params(json).unwrap().readout().change.pair();
    assert_eq!(compared("{}"), [0, 3]);
    assert_eq!(compared(r#"{"mode": "local"}"#), [2, 3]);
    assert_eq!(compared(r#"{"mode": "local", "change": 1}"#), [0, 1]);
    assert_eq!(compared(r#"{"change": 2}"#), [0, 2]);
    assert_eq!(compared(r#"{"timesteps": [10, 20]}"#), [0, 1]);
}

#[test]
fn parameters_out_of_range_are_named() {
    let message = |json: &str| params(json).unwrap_err().to_string();
    assert_eq!(
        message(r#"{"repeats": 0}"#),
        "parameter `repeats` expected from 1 to 65536, got `0`"
    );
    assert!(message(r#"{"timesteps": [0]}"#).contains("at least two timesteps"));
    assert!(message(r#"{"timesteps": [120, 0]}"#).contains("got `[120, 0]`"));
    assert!(message(r#"{"change": 4}"#).contains("`change` expected 1 to 3"));
    assert!(message(r#"{"method": "EULER"}"#).contains("`PNDM4`"));
    assert!(message(r#"{"wieghts": "a"}"#).contains("unknown field `wieghts`"));
    assert_eq!(
        message(r#"{"batch": 65537}"#),
        "parameter `batch` expected from 1 to 65536, or auto, got `65537`"
    );
    assert!(message(r#"{"batch": "many"}"#).contains("or `auto`"));
    assert!(message(r#"{"precision": "f16"}"#).contains("`bf16`"));
}

#[test]
fn a_batch_and_a_precision_may_be_chosen() {
    assert_eq!(params(r#"{"batch": "auto"}"#).unwrap().batch, BatchSize::Auto);
    let precise = |json: &str| params(json).unwrap().check_on("cpu");
    assert!(precise("{}").is_ok());
    let error = precise(r#"{"precision": "bf16"}"#).unwrap_err().to_string();
    assert_eq!(error, "parameter `precision` expected f32 on the CPU, got `bf16`");
    assert!(params(r#"{"precision": "bf16"}"#).unwrap().check_on("cuda:0").is_ok());
}

#[test]
fn a_full_memory_has_a_name_and_a_remedy() {
    let fitted = Fitted {
        loaded: network::untrained(SIDE, 2, &Device::Cpu).unwrap(),
        device: Device::Cpu,
        name: "cuda:0".to_owned(),
        n_classes: 2,
        side: SIDE,
    };
    let error = fitted.failure(DenoiseError::OutOfMemory { batch: 4096, fits: Some(512) });
    assert!(error.is_out_of_memory());
    assert_eq!(
        error.to_string(),
        "a batch of 4096 images does not fit into the memory of the device, 512 would (cuda:0)\n\n\
         hint: `--set diffood.batch=512`, or `diffood.batch=auto`"
    );
    let error = fitted.failure(DenoiseError::Caller("other".into()));
    assert!(!error.is_out_of_memory());
}

#[test]
fn the_network_must_be_given() {
    let asset = |name: &str| Ok(PathBuf::from(format!("/assets/{name}")));
    let origin = |json: &str| params(json).unwrap().origin(&asset);
    let text = origin("{}").unwrap_err().to_string();
    let (line, hint) = text.split_once("\n\nhint: ").unwrap();
    assert_eq!(line, "parameter `weights` expected a file with a diffusion network, got none");
    assert!(hint.contains("--set diffood.weights=FILE"), "{hint}");
    assert_eq!(origin(r#"{"untrained": true}"#).unwrap(), Origin::Untrained);
    assert!(origin(r#"{"untrained": true, "weights": "a"}"#).is_err());
    let file = |config: Option<&str>| Origin::File {
        weights: "/assets/weights".into(),
        config: config.map(Into::into),
    };
    assert_eq!(origin(r#"{"weights": "a"}"#).unwrap(), file(None));
    let both = origin(r#"{"weights": "a", "config": "b"}"#).unwrap();
    assert_eq!(both, file(Some("/assets/config")));
}

/// The scores of the worked example's images, by its classifier: seed 0, and the index of an image
/// as its key. One row for each readout.
fn example_scores(params: &Params, readouts: &[Readout]) -> Vec<f32> {
    let example = DiffOod::info().example.0;
    let n_classes = example.head_weight.len();
    let loaded = network::untrained(SIDE, n_classes, &Device::Cpu).unwrap();
    let classify = |images: Images<'_>| {
        let mut outputs = Outputs::default();
        for image in images.values().chunks_exact(LEN) {
            let channels = image.chunks_exact(LEN / 3);
            let means = channels.map(|channel| channel.iter().sum::<f32>() / (LEN / 3) as f32);
            let means: Vec<f32> = means.collect();
            let rows = example.head_weight.iter().zip(&example.head_bias);
            outputs.logits.extend(rows.map(|(weight, bias)| {
                weight.iter().zip(&means).map(|(w, h)| w * h).sum::<f32>() + bias
            }));
            outputs.features.extend(means);
        }
        Ok(outputs)
    };
    let scoring = Scoring {
        denoiser: params.denoiser(&loaded, &Device::Cpu, 64),
        timesteps: &params.timesteps,
        repeats: params.repeats,
    };
    let pixels = example.batch.images.concat();
    let images = Images::new(&pixels, (SIDE, SIDE)).unwrap();
    let logits = classify(images).unwrap().logits;
    let classes: Vec<u32> = logits.chunks_exact(n_classes).map(predicted).collect();
    let noise = |image: usize, repeat, len| noise::noise(0, image as u64, repeat, len);
    scoring.scores(images, &classes, &noise, readouts, &classify, &mut || Ok(())).unwrap()
}

fn example_params() -> Params {
    let example = DiffOod::info().example.0;
    params(&oodbench_sdk::serde_json::to_string(&example.params).unwrap()).unwrap()
}

#[test]
fn the_worked_example_has_its_scores() {
    let params = example_params();
    assert_eq!(params.origin(&|_| unreachable!()).unwrap(), Origin::Untrained);
    let scores = example_scores(&params, &[params.readout()]);
    for (got, expected) in scores.iter().zip(&DiffOod::info().example.0.scores) {
        assert!((got - expected).abs() < 1e-3 * expected, "{scores:?}");
    }
}

#[test]
fn every_method_and_convention_scores() {
    let base = example_params();
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for method in Method::ALL {
        for indexing in [Indexing::Reference, Indexing::Aligned] {
            let params = Params { method, indexing, ..base.clone() };
            let scores = example_scores(&params, &[params.readout()]);
            assert!(scores.iter().all(|x| x.is_finite() && *x > 0.0), "{method}: {scores:?}");
            assert!(!seen.contains(&scores), "{method} and {indexing:?}");
            seen.push(scores);
        }
    }
}

#[test]
fn what_a_score_is_read_off_with_is_marked() {
    let marked: Vec<String> = described()
        .iter()
        .map(|param| format!("{param:?}"))
        .filter(|text| text.contains("readout: true"))
        .collect();
    assert_eq!(marked.len(), 3, "{marked:?}");
}

#[test]
fn errors_of_the_host_come_back_as_they_were() {
    let err = Error::parameter("x", "y", "z");
    assert_eq!(plain(DenoiseError::Caller(err.clone().into())), err);
    assert_eq!(plain(DenoiseError::Caller("other".into())).to_string(), "other");
}
