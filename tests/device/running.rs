//! DiffOOD's process on a device: scores against those of the CPU, launch by launch and replayed.

use candle_core::Device;
use oodbench_diffusion::checkpoint::{LoadedModel, On};
use oodbench_diffusion::denoise::{
    Denoiser, Images, Outputs, Readout, Refusal, Scoring, network, noise,
};
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_nn::formula;
use oodbench_nn::precision::Precision;

use crate::Gpu;

const SIDE: usize = 8;
const LEN: usize = 3 * SIDE * SIDE;
const TIMESTEPS: [usize; 3] = [0, 120, 300];

/// Channel means, and a linear head on them.
fn classify(images: Images<'_>) -> Result<Outputs, Refusal> {
    let mut outputs = Outputs::default();
    for image in images.values().chunks_exact(LEN) {
        let channels = image.chunks_exact(LEN / 3);
        let means: Vec<f32> =
            channels.map(|channel| channel.iter().sum::<f32>() / (LEN / 3) as f32).collect();
        outputs.logits.extend([means[0] - means[1], means[1] - 2.0 * means[2]]);
        outputs.features.extend(means);
    }
    Ok(outputs)
}

fn loaded(device: &Device, replay: bool) -> LoadedModel {
    let on = On { device, precision: Precision::F32, replay };
    network::untrained(SIDE, 2, on).expect("a network")
}

/// Every readout of five images.
fn scores(method: Method, loaded: &LoadedModel, device: &Device) -> Vec<f32> {
    let scoring = Scoring {
        denoiser: Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method,
            steps: 10,
            indexing: Indexing::Reference,
            beta: 2.0,
            batch: 12,
            device,
        },
        timesteps: &TIMESTEPS,
        repeats: 2,
    };
    let pixels: Vec<f32> =
        (0..5).flat_map(|i: u64| formula::uniform(&i.to_string(), LEN, 0.0, 1.0)).collect();
    let images = Images::new(&pixels, (SIDE, SIDE)).expect("images");
    let noise = |image: usize, repeat, len| noise::noise(0, image as u64, repeat, len);
    let readouts = Readout::all(TIMESTEPS.len());
    let classes = [0, 1, 0, 1, 1];
    let scores = scoring.scores(images, &classes, &noise, &readouts, &classify, &mut || Ok(()));
    scores.unwrap_or_else(|error| panic!("{method}: {error}"))
}

fn assert_scores(what: &str, ours: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
        assert!(b.is_finite() && *b > 0.0, "{what}: score {i} is {b}");
        assert!((a - b).abs() <= tolerance * b, "{what}: score {i} expected {b}, got {a}");
    }
}

#[test]
fn scores_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    // An adaptive method ends within its own tolerance of 7e-4; the reference's trajectories have it.
    for method in Method::ALL.into_iter().filter(|method| !method.is_adaptive()) {
        let expected = scores(method, &loaded(&Device::Cpu, false), &Device::Cpu);
        let ours = scores(method, &loaded(&gpu.device, false), &gpu.device);
        assert_scores(&method.to_string(), &ours, &expected, 1e-4);
    }
}

#[test]
fn replayed_steps_give_the_same_scores_and_are_replayed() {
    let gpu = Gpu::new();
    for method in [Method::Ddim, Method::Pndm2] {
        let expected = scores(method, &loaded(&gpu.device, false), &gpu.device);
        let replayed = loaded(&gpu.device, true);
        // Once with the recording, and once with it made.
        for _ in 0..2 {
            let ours = scores(method, &replayed, &gpu.device);
            assert_eq!(replayed.refused.reason(), None, "{method}");
            assert_scores(&method.to_string(), &ours, &expected, 1e-5);
        }
    }
}

#[test]
fn a_score_is_the_same_in_whatever_company() {
    let gpu = Gpu::new();
    let replayed = loaded(&gpu.device, true);
    let once = scores(Method::Ddim, &replayed, &gpu.device);
    assert_eq!(scores(Method::Ddim, &replayed, &gpu.device), once, "the same bits twice");
}
