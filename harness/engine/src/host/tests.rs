//! The extensions of a worker's host, on the embedded classifier.

use std::io::Write;

use candle_core::Device;
use oodbench_abi::extension;
use oodbench_abi::message::{self, ForwardFrom, ForwardSizes, ForwardWith};
use oodbench_datasets::embedded;
use oodbench_nn::classifier::Normalisation as Own;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use super::parts::FORWARD_BATCH;
use super::*;

const N_CLASSES: usize = 10;
const SIDE: usize = 32;
/// Of the run, not of the file, which states its own.
const NORMALISATION: Own = Own { mean: [0.25; 3], std: [0.5, 0.25, 1.0] };

fn weights() -> NamedTempFile {
    let bytes = embedded("glyphs/classifier.safetensors").expect("it is part of the program");
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn host(needs: Needs, weights: &Path) -> WorkerHost {
    let classifier = ClassifierRef {
        name: "test".to_owned(),
        weights: weights.to_owned(),
        blake3: String::new(),
        arch: None,
        groups: None,
        n_classes: N_CLASSES,
        normalisation: NORMALISATION,
        stated_accuracy: None,
    };
    WorkerHost {
        needs,
        seed: 0,
        threads: 1,
        precision: Default::default(),
        device: "cpu".to_owned(),
        assets: BTreeMap::from([("checkpoints.1".to_owned(), weights.to_owned())]),
        head: None,
        classifier: Some(classifier),
        loaded: Mutex::new(None),
        others: Mutex::default(),
        train: None,
        val: None,
        val_ood: None,
        size: Some((SIDE, SIDE)),
        say: Arc::new(|_| {}),
    }
}

fn ask(host: &WorkerHost, id: &str, input: &[u8]) -> Result<Vec<u8>, String> {
    let answer = host.extension(RStr::from(id), RSlice::from_slice(input)).into_result();
    answer.map(RVec::into_vec).map_err(|err| err.message.into_string())
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

/// More than the classifier takes at once.
const N_IMAGES: usize = FORWARD_BATCH + 2;

fn images() -> Vec<f32> {
    (0..N_IMAGES * 3 * SIDE * SIDE).map(|i| (i * 7919 % 4093) as f32 / 4093.0).collect()
}

/// What the classifier itself gives.
fn outputs(weights: &Path, normalisation: Own) -> (Vec<f32>, Vec<f32>) {
    let weights = oodbench_nn::checkpoint::StateDict::open(weights).unwrap();
    let classifier =
        Classifier::load(&weights, None, N_CLASSES, normalisation, &Device::Cpu).unwrap();
    let outputs = classifier.forward(&images(), (SIDE, SIDE)).unwrap();
    (network::values(&outputs.logits).unwrap(), network::values(&outputs.features).unwrap())
}

#[test]
fn a_pass_that_goes_on_from_a_stage_ends_as_the_whole_one() {
    let weights = weights();
    let host = host(Needs::FORWARD.and(Needs::LAYERS), weights.path());
    let groups: LayerGroups = json(&ask(&host, extension::LAYER_GROUPS, &[]).unwrap());
    assert_eq!(groups.stages, ["stem", "layer1", "layer2", "layer3"]);
    assert_eq!(groups.maps[..3], ["conv1", "layer1.0.conv1", "layer1.0.conv2"]);
    assert_eq!(groups.maps.len(), 19);
    let (images, shape) = (images(), [N_IMAGES, 3, SIDE, SIDE]);
    let names: RVec<RString> = groups.stages.iter().map(|name| name.as_str().into()).collect();
    let layers = host.layers(TensorView::new(&images, &shape), names).into_result().unwrap();
    let (logits, features) = outputs(weights.path(), NORMALISATION);
    for layer in layers {
        assert_eq!(layer.shape[0], N_IMAGES);
        let header = ForwardFrom { at: layer.name.into(), shape: layer.shape.into() };
        let input = message::encode(&header, &[&layer.data]);
        let answer = ask(&host, extension::FORWARD_FROM, &input).unwrap();
        let (sizes, numbers) = message::decode::<ForwardSizes>(&answer).unwrap();
        assert_eq!(sizes, ForwardSizes { n: N_IMAGES, n_classes: N_CLASSES, n_features: 64 });
        assert_eq!(numbers, [&logits[..], &features].concat(), "{}", header.at);
    }
}

#[test]
fn another_classifier_is_normalised_as_its_file_says() {
    let weights = weights();
    let host = host(Needs::FORWARD.and(Needs::ASSETS), weights.path());
    let header =
        |asset: &str| ForwardWith { asset: asset.to_owned(), shape: vec![N_IMAGES, 3, SIDE, SIDE] };
    let input = message::encode(&header("checkpoints.1"), &[&images()]);
    let answer = ask(&host, extension::FORWARD_WITH, &input).unwrap();
    let (_, numbers) = message::decode::<ForwardSizes>(&answer).unwrap();
    let stated = Own::stated_in(weights.path()).expect("a file that states it");
    let (logits, features) = outputs(weights.path(), stated);
    assert_eq!(numbers, [logits, features].concat());
    // It stays loaded, so that the file is not needed any more.
    drop(weights);
    assert_eq!(ask(&host, extension::FORWARD_WITH, &input).unwrap(), answer);
    let input = message::encode(&header("checkpoints.2"), &[&images()]);
    let error = ask(&host, extension::FORWARD_WITH, &input).unwrap_err();
    assert_eq!(error, "parameter `checkpoints.2` expected a file, got none");
}

#[test]
fn normalisation_is_known_without_a_network() {
    let host = host(Needs::GRADIENT, Path::new("there/is/none"));
    let answer = ask(&host, extension::NORMALISATION, &[]).unwrap();
    let expected = Normalisation { mean: NORMALISATION.mean, std: NORMALISATION.std };
    assert_eq!(json::<Normalisation>(&answer), expected);
}

#[test]
fn what_was_not_asked_for_is_named() {
    let weights = weights();
    let refused = |needs, id| ask(&host(needs, weights.path()), id, &[]).unwrap_err();
    for (needs, id, expected) in [
        (
            Needs::LOGITS,
            extension::NORMALISATION,
            "service `normalisation` was not asked for: add `forward` to the needs",
        ),
        (
            Needs::FORWARD,
            extension::LAYER_GROUPS,
            "service `layer_groups` was not asked for: add `layers` to the needs",
        ),
        (
            Needs::LAYERS,
            extension::FORWARD_FROM,
            "service `forward_from` was not asked for: add `forward` to the needs",
        ),
        (
            Needs::NONE,
            extension::FORWARD_WITH,
            "service `forward_with` was not asked for: add `forward`, `assets` to the needs",
        ),
        (Needs::NONE, "oodbench.later/1", "unknown extension `oodbench.later/1`"),
    ] {
        assert_eq!(refused(needs, id), expected);
    }
}

#[test]
fn activations_that_do_not_fit_are_refused() {
    let weights = weights();
    let host = host(Needs::FORWARD.and(Needs::LAYERS), weights.path());
    let refused = |at: &str, shape: &[usize], value: f32| {
        let values = vec![value; shape.iter().product()];
        let header = ForwardFrom { at: at.to_owned(), shape: shape.to_vec() };
        ask(&host, extension::FORWARD_FROM, &message::encode(&header, &[&values])).unwrap_err()
    };
    assert_eq!(
        refused("layer2.0.conv1", &[1, 32, 16, 16], 0.0),
        "stage expected one of stem, layer1, layer2, layer3, got `layer2.0.conv1`"
    );
    assert_eq!(
        refused("layer3", &[1, 64], 0.0),
        "activation expected [n, channels, height, width], got [1, 64] and 64 values"
    );
    assert_eq!(
        refused("layer3", &[1, 1, 1, 2], f32::NAN),
        "activation expected finite values, got `NaN` at 0"
    );
    // Other channels than the next layer takes: its kernels say so.
    for (at, shape) in
        [("layer3", [1, 63, 8, 8]), ("layer1", [2, 17, 32, 32]), ("stem", [1, 1, 1, 1])]
    {
        assert!(!refused(at, &shape, 0.5).contains("panic"), "{at}");
    }
    let header = ForwardFrom { at: "layer3".to_owned(), shape: vec![2, 64, 8, 8] };
    let error = ask(&host, extension::FORWARD_FROM, &message::encode(&header, &[&[0.0]]));
    assert!(error.unwrap_err().starts_with("activation expected [n, channels, height, width]"));
    assert!(ask(&host, extension::FORWARD_FROM, b"\x01").unwrap_err().contains("cut off"));
    let header = ForwardFrom { at: "layer3".to_owned(), shape: vec![0, 64, 8, 8] };
    let answer = ask(&host, extension::FORWARD_FROM, &message::encode(&header, &[])).unwrap();
    let (sizes, numbers) = message::decode::<ForwardSizes>(&answer).unwrap();
    assert_eq!((sizes.n, numbers.len()), (0, 0));
}
