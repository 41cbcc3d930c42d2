//! Scores against batches, order and seeds, on a network by formula.

use oodbench_nn::formula;

use super::*;

const SIDE: usize = 4;
const LEN: usize = 3 * SIDE * SIDE;
const N_IMAGES: usize = 5;

/// Channel means, and a linear head on them.
fn classify(images: ImageBatch<'_>) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    for image in images.values().chunks_exact(LEN) {
        let means: Vec<f32> = image
            .chunks_exact(LEN / 3)
            .map(|channel| channel.iter().sum::<f32>() / (LEN / 3) as f32)
            .collect();
        outputs.logits.extend([means[0] - means[1], means[1] - 2.0 * means[2]]);
        outputs.features.extend(means);
    }
    Ok(outputs)
}

/// The scores of the images with these keys; the key decides the pixels too.
fn scores(keys: &[u64], seed: u64, batch: usize, space: Space) -> Vec<f32> {
    let loaded = network::untrained(SIDE, 2, &Device::Cpu).unwrap();
    let scoring = Scoring {
        denoiser: Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: Method::Ddim,
            steps: 10,
            beta: 2.0,
            batch,
            device: &Device::Cpu,
        },
        compared: [0, 240],
        repeats: 3,
        space,
    };
    let pixels: Vec<f32> =
        keys.iter().flat_map(|key| formula::uniform(&key.to_string(), LEN, 0.0, 1.0)).collect();
    let images = ImageBatch::new(&pixels, SIDE, SIDE).unwrap();
    let classes: Vec<u32> = keys.iter().map(|&key| key as u32 % 2).collect();
    let noise = |image: usize, repeat, len| noise::noise(seed, keys[image], repeat, len);
    let mut ticks = 0;
    let mut tick = || {
        ticks += 1;
        Ok(())
    };
    let scores = scoring.scores(images, &classes, &noise, &classify, &mut tick).unwrap();
    assert_eq!(scoring.evaluations(keys.len()), ticks);
    scores
}

#[track_caller]
fn assert_close(expected: &[f32], got: &[f32]) {
    assert_eq!(expected.len(), got.len());
    for (a, b) in expected.iter().zip(got) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "expected {expected:?}, got {got:?}");
    }
}

#[test]
fn a_score_depends_on_neither_batch_nor_order() {
    let keys: Vec<u64> = (0..N_IMAGES as u64).collect();
    for space in [Space::Image, Space::Feature, Space::Logit] {
        // Room for two images with their repeats and both branches, for all of them, for less than one.
        for batch in [12, 64, 5] {
            let whole = scores(&keys, 0, batch, space);
            assert!(whole.iter().all(|score| score.is_finite() && *score > 0.0), "{whole:?}");
            let one = |&key: &u64| scores(&[key], 0, batch, space);
            assert_eq!(whole, keys.iter().flat_map(one).collect::<Vec<f32>>(), "one by one");
            let reversed: Vec<u64> = keys.iter().rev().copied().collect();
            let mut backwards = scores(&reversed, 0, batch, space);
            backwards.reverse();
            assert_eq!(whole, backwards, "in reverse order");
        }
    }
}

#[test]
fn the_size_of_an_evaluation_changes_rounding_alone() {
    let whole = scores(&[0, 1, 2], 0, 64, Space::Image);
    for batch in [1, 7, 12] {
        assert_close(&whole, &scores(&[0, 1, 2], 0, batch, Space::Image));
    }
}

#[test]
fn the_seed_changes_every_score() {
    let [one, two] = [0, 1].map(|seed| scores(&[0, 1, 2], seed, 64, Space::Image));
    assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() > 1e-4), "{one:?} {two:?}");
}

#[test]
fn no_images_have_no_scores() {
    assert!(scores(&[], 0, 64, Space::Logit).is_empty());
}

fn params(json: &str) -> Result<Params> {
    let params: Params = oodbench_sdk::serde_json::from_str(json)?;
    params.check().map(|()| params)
}

#[test]
fn the_last_timestep_is_compared_with_the_first_by_default() {
    let compared = |json: &str| params(json).unwrap().compared();
    assert_eq!(compared("{}"), [0, 360]);
    assert_eq!(compared(r#"{"mode": "local"}"#), [240, 360]);
    assert_eq!(compared(r#"{"mode": "local", "change": 1}"#), [0, 120]);
    assert_eq!(compared(r#"{"change": 2}"#), [0, 240]);
}

#[test]
fn parameters_out_of_range_are_named() {
    let message = |json: &str| params(json).unwrap_err().to_string();
    assert_eq!(message(r#"{"repeats": 0}"#), "parameter `repeats` expected at least 1, got `0`");
    assert!(message(r#"{"timesteps": [0]}"#).contains("at least two timesteps"));
    assert!(message(r#"{"timesteps": [120, 0]}"#).contains("got `[120, 0]`"));
    assert!(message(r#"{"change": 4}"#).contains("`change` expected 1 to 3"));
    assert!(message(r#"{"method": "EULER"}"#).contains("`PNDM4`"));
    assert!(message(r#"{"wieghts": "a"}"#).contains("unknown field `wieghts`"));
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

/// The scores that the worked example states, by the example classifier: seed 0, and the index
/// of an image as its key.
#[test]
fn the_worked_example_has_its_scores() {
    let example = DiffOod::info().example.0;
    let json = oodbench_sdk::serde_json::to_string(&example.params).unwrap();
    let params = params(&json).unwrap();
    assert_eq!(params.origin(&|_| unreachable!()).unwrap(), Origin::Untrained);
    let n_classes = example.head_weight.len();
    let loaded = network::untrained(SIDE, n_classes, &Device::Cpu).unwrap();
    let classify = |images: ImageBatch<'_>| {
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
        denoiser: Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: params.method,
            steps: params.steps,
            beta: params.beta,
            batch: params.batch,
            device: &Device::Cpu,
        },
        compared: params.compared(),
        repeats: params.repeats,
        space: params.space,
    };
    let pixels = example.batch.images.concat();
    let images = ImageBatch::new(&pixels, SIDE, SIDE).unwrap();
    let logits = classify(images).unwrap().logits;
    let classes: Vec<u32> = logits.chunks_exact(n_classes).map(predicted).collect();
    let noise = |image: usize, repeat, len| noise::noise(0, image as u64, repeat, len);
    let scores = scoring.scores(images, &classes, &noise, &classify, &mut || Ok(())).unwrap();
    for (got, expected) in scores.iter().zip(&example.scores) {
        assert!((got - expected).abs() < 1e-3 * expected, "{scores:?}");
    }
}
