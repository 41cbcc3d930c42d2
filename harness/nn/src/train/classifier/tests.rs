//! Tests of a classifier's training, on images of eight pixels.

use super::*;

/// Two classes of small images: bright above, or bright below.
struct Halves(Vec<[u8; 8 * 8 * 3]>);

impl Halves {
    fn new(n: usize) -> Self {
        let image = |i: usize| {
            std::array::from_fn(|at| {
                let above = at < 96;
                let noise = (i * 31 + at * 17) % 90;
                (noise + if above == i.is_multiple_of(2) { 140 } else { 20 }) as u8
            })
        };
        Self((0..n).map(image).collect())
    }
}

impl Examples for Halves {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn size(&self) -> (usize, usize) {
        (8, 8)
    }
    fn pixels(&self, index: usize) -> &[u8] {
        &self.0[index]
    }
    fn label(&self, index: usize) -> u32 {
        index as u32 % 2
    }
}

fn recipe() -> ClassifierRecipe {
    ClassifierRecipe {
        epochs: 3,
        batch_size: 8,
        learning_rate: 0.05,
        last_learning_rate: 1e-6,
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 },
        augmentation: Augmentation { crop_padding: 1, horizontal_flip: true },
        seed: 5,
    }
}

fn training(examples: &Halves) -> ClassifierTraining<'_> {
    let arch = Architecture::ResNetCifar { blocks: 1, width: 8, projection: false };
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
    ClassifierTraining::new(arch, 2, normalisation, examples, &recipe(), &Device::Cpu).unwrap()
}

fn flat(weights: &BTreeMap<String, Tensor>) -> Vec<f32> {
    weights.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn it_learns_and_the_last_batch_of_an_epoch_is_smaller() {
    let (examples, val) = (Halves::new(42), Halves::new(20));
    let mut training = training(&examples);
    assert_eq!((training.steps_an_epoch(), training.total_steps()), (6, 18));
    let mut sizes = Vec::new();
    while training.step_count() < training.total_steps() {
        sizes.push(training.step(&mut Alone).unwrap().images);
    }
    assert_eq!(sizes[..7], [8, 8, 8, 8, 8, 2, 8]);
    assert!(training.accuracy(&val).unwrap() > 0.9);
}

#[test]
fn a_training_that_was_stopped_within_an_epoch_ends_with_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let configuration = serde_json::json!({});
    let examples = Halves::new(20);
    let mut whole = training(&examples);
    let mut losses = Vec::new();
    for step in 1..=9 {
        losses.extend(whole.step(&mut Alone).unwrap().epoch_loss);
        if step == 5 {
            whole.save(&path, &configuration, Text::new()).unwrap();
        }
    }
    let mut resumed = training(&examples);
    resumed.load(&path, &configuration).unwrap();
    let mut again = Vec::new();
    while resumed.step_count() < 9 {
        again.extend(resumed.step(&mut Alone).unwrap().epoch_loss);
    }
    assert_eq!(flat(&whole.weights().unwrap()), flat(&resumed.weights().unwrap()));
    assert_eq!(losses[1..], again);
}

#[test]
fn labels_outside_of_the_classes_are_refused() {
    let examples = Halves::new(4);
    let arch = Architecture::ResNetCifar { blocks: 1, width: 8, projection: false };
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
    let err = ClassifierTraining::new(arch, 1, normalisation, &examples, &recipe(), &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(err.contains("label of image 1") && err.contains("below 1, got 1"), "{err}");
}
