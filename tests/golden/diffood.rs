//! DiffOOD's scores against the reference's own numbers: `end_to_end` of
//! `golden/diffood/manifest.json`.
//!
//! The detector's own code runs, with the manifest's noise in the place of its own, and a
//! classifier by formula. Everything is read from the manifest. Tolerances are the manifest's,
//! relative to the standard deviation of the expected tensor.

use candle_core::{Device, Tensor};
use oodbench_diffusion::denoise::{
    Change, Denoiser, Images, Mode, Outputs, Readout, Refusal, Sample, Scoring, Space, Subjects,
    changes, predicted,
};
use oodbench_diffusion::net::{EpsModel, NetConfig};
use oodbench_diffusion::sampler::Indexing;
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::arch::{Architecture, Network, Taps};
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode as Pass;
use oodbench_tests::goldens::{Goldens, assert_close, input};
use serde_json::Value;

/// An evaluation of the network takes this many images, so that the last one is not full.
const BATCH: usize = 10;

/// The case of the manifest, with everything that it names.
struct Case {
    goldens: Goldens,
    diffusion: Box<dyn EpsModel>,
    schedule: Schedule,
    classifier: Box<dyn Network>,
    normalisation: Normalisation,
    /// `[image, 3, height, width]`
    images: Tensor,
    /// One for each repeat, of the images' shape.
    noise: Vec<Tensor>,
    timesteps: Vec<usize>,
}

impl Case {
    fn read() -> Self {
        let goldens = Goldens::open("diffood");
        let case = &goldens.manifest["end_to_end"];
        let named = |list: &str, key: &str, name: &Value| {
            let found = goldens.cases(list).find(|entry| &entry[key] == name);
            found.unwrap_or_else(|| panic!("`{list}` of the manifest has no {name}")).clone()
        };
        let network = named("networks", "name", &case["diffusion"]);
        let network: NetConfig = read(&network["config"]);
        assert_eq!(case["classifier"], "resnet18_32x32");
        let classifier = named("classifiers", "arch", &case["classifier"]);
        let vb = || formula::var_builder(Default::default());
        let classes = read(&case["classes"]);
        let arch = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
        let [mean, std] = ["mean", "std"].map(|key| read(&classifier[key]));
        Self {
            diffusion: network.build(vb()).expect("a network"),
            schedule: Schedule::new(&ScheduleConfig::default()),
            classifier: arch.build(classes, vb()).expect("a classifier"),
            normalisation: Normalisation { mean, std },
            images: input(&case["images"]),
            noise: goldens.manifest["end_to_end"]["noise"]
                .as_array()
                .expect("a list")
                .iter()
                .map(input)
                .collect(),
            timesteps: read(&case["timesteps"]),
            goldens,
        }
    }

    fn case(&self) -> &Value {
        &self.goldens.manifest["end_to_end"]
    }

    fn tolerance(&self) -> f64 {
        read(&self.goldens.manifest["tolerance_relative_to_std"]["end_to_end"])
    }

    fn denoiser(&self) -> Denoiser<'_> {
        Denoiser {
            model: self.diffusion.as_ref(),
            schedule: &self.schedule,
            method: read(&self.case()["method"]),
            steps: read(&self.case()["steps"]),
            indexing: Indexing::Reference,
            beta: read(&self.case()["beta"]),
            batch: BATCH,
            device: &Device::Cpu,
        }
    }

    fn size(&self) -> (usize, usize) {
        let (_, _, height, width) = self.images.dims4().expect("four sizes");
        (height, width)
    }

    fn noise_of(&self, image: usize, repeat: usize) -> Vec<f32> {
        values(&self.noise[repeat].get(image).expect("noise for each image"))
    }

    fn classify(&self, images: Images<'_>) -> Result<Outputs, Refusal> {
        let (height, width) = images.size();
        let shape = [images.len(), 3, height, width];
        let xs = Tensor::from_slice(images.values(), &shape, &Device::Cpu)?;
        let xs = self.normalisation.apply(&xs)?;
        let outputs = self.classifier.forward(&xs, Pass::Eval, &mut Taps::none())?;
        Ok(Outputs { features: values(&outputs.features), logits: values(&outputs.logits) })
    }

    /// The predicted class of each clean image.
    fn classes(&self) -> Vec<u32> {
        let images = values(&self.images);
        let images = Images::new(&images, self.size()).expect("images");
        let logits = self.classify(images).expect("a forward pass").logits;
        logits.chunks_exact(logits.len() / images.len()).map(predicted).collect()
    }
}

#[test]
fn denoised_images_and_scores() {
    let case = Case::read();
    let (repeats, classes) = (case.noise.len(), case.classes());
    let expected: Vec<u32> = {
        let y = case.goldens.tensor(&case.case()["y_pred"]);
        y.to_dtype(candle_core::DType::U32).and_then(|y| y.to_vec1()).expect("classes")
    };
    assert_eq!(classes, expected, "predicted classes");

    let pixels = values(&case.images);
    let images = Images::new(&pixels, case.size()).expect("images");
    let noise: Vec<f32> = (0..images.len())
        .flat_map(|image| (0..repeats).map(move |repeat| (image, repeat)))
        .flat_map(|(image, repeat)| case.noise_of(image, repeat))
        .collect();
    let subjects = Subjects { images, classes: &classes, noise: &noise, repeats };
    let samples: Vec<Sample> = case
        .timesteps
        .iter()
        .map(|&t| {
            let classify = |images: Images<'_>| case.classify(images);
            case.denoiser().sample(&subjects, t, Some(&classify), &mut || Ok(())).expect("images")
        })
        .collect();

    for (key, space) in [
        ("images_out", Space::Image),
        ("features_out", Space::Feature),
        ("logits_out", Space::Logit),
    ] {
        let expected = case.goldens.tensor(&case.case()[key]);
        let ours: Vec<f32> = samples.iter().flat_map(|s| s.space(space).to_vec()).collect();
        compare(key, ours, &expected, case.tolerance());
    }
    for (name, tensor) in score_cases(&case) {
        let (space, mode) = space_and_mode(name);
        let ours: Vec<f32> = (1..samples.len())
            .flat_map(|nth| {
                let pair = Change { mode, nth }.pair();
                let [before, after] = pair.map(|i| samples[i].space(space));
                changes(before, after, images.len(), repeats).expect("rows of one size")
            })
            .collect();
        compare(name, ours, &case.goldens.tensor(tensor), case.tolerance());
    }
}

/// The path that the detector takes: in parts, and every score of the manifest from one pass.
/// Each alone, from the timesteps that it looks at, is the same to the last bit.
#[test]
fn scores_of_the_detector() {
    let case = Case::read();
    let (repeats, classes) = (case.noise.len(), case.classes());
    let pixels = values(&case.images);
    let images = Images::new(&pixels, case.size()).expect("images");
    let changes = case.timesteps.len() - 1;
    let of_score = |name: &str| -> Vec<Readout> {
        let (space, mode) = space_and_mode(name);
        (1..=changes).map(|nth| Readout { space, change: Change { mode, nth } }).collect()
    };
    let scores = |readouts: &[Readout]| -> Vec<f32> {
        let noise = |image: usize, repeat: usize, _| case.noise_of(image, repeat);
        let classify = |images: Images<'_>| case.classify(images);
        let denoiser = case.denoiser();
        let scoring = Scoring { denoiser, timesteps: &case.timesteps, repeats };
        scoring
            .scores(images, &classes, &noise, readouts, &classify, &mut || Ok(()))
            .unwrap_or_else(|err| panic!("{readouts:?}: {err}"))
    };
    let names: Vec<(&str, &Value)> = score_cases(&case).collect();
    let all: Vec<Readout> = names.iter().flat_map(|(name, _)| of_score(name)).collect();
    let together = scores(&all);
    for ((name, tensor), ours) in names.iter().zip(together.chunks_exact(changes * images.len())) {
        compare(name, ours.to_vec(), &case.goldens.tensor(tensor), case.tolerance());
        assert_eq!(scores(&of_score(name)), ours, "{name} alone");
    }
}

fn score_cases(case: &Case) -> impl Iterator<Item = (&str, &Value)> {
    let scores = case.case()["scores"].as_object().expect("scores by name");
    assert!(!scores.is_empty(), "the manifest names no score");
    scores.iter().map(|(name, tensor)| (name.as_str(), tensor))
}

fn space_and_mode(name: &str) -> (Space, Mode) {
    let (space, mode) = name.split_once('.').expect("SPACE.MODE");
    let space = match space {
        "imgr" => Space::Image,
        "feature" => Space::Feature,
        "logit" => Space::Logit,
        other => panic!("unknown space `{other}`"),
    };
    (space, read(&Value::from(mode)))
}

/// Compares in the shape of the expected tensor, and prints how far we are off.
fn compare(what: &str, ours: Vec<f32>, expected: &Tensor, tolerance: f64) {
    let ours = Tensor::from_vec(ours, expected.dims(), &Device::Cpu).expect("as many values");
    let (numbers, n) = (values(expected), expected.elem_count() as f32);
    let mean = numbers.iter().sum::<f32>() / n;
    let std = (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    let pairs = values(&ours).into_iter().zip(numbers);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{what}: off by {:.1e} standard deviations at most", worst / std);
    assert_close(what, &ours, expected, tolerance);
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32 values")
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|err| panic!("{value}: {err}"))
}
