//! Tests of the denoising process, on a network by formula.

use super::*;
use crate::checkpoint::LoadedModel;
use crate::denoise::network::untrained;
use crate::denoise::noise::noise;
use oodbench_nn::formula;

const LEN: usize = 3 * 4 * 4;

fn denoiser<'a>(loaded: &'a LoadedModel, batch: usize) -> Denoiser<'a> {
    Denoiser {
        model: loaded.model.as_ref(),
        schedule: &loaded.schedule,
        method: Method::Pndm2,
        steps: 10,
        indexing: Indexing::Reference,
        beta: 2.0,
        batch,
        device: &Device::Cpu,
    }
}

fn sample(batch: usize, n_classes: usize, tick: &mut Tick<'_>) -> Result<Sample, DenoiseError> {
    let loaded = untrained(4, n_classes, &Device::Cpu).unwrap();
    let images = formula::uniform("images", 3 * LEN, 0.0, 1.0);
    let noise: Vec<f32> = (0..6).flat_map(|row| noise(0, row / 2, row as usize, LEN)).collect();
    let subjects = Subjects {
        images: Images::new(&images, (4, 4)).unwrap(),
        classes: &[0, 1, 1],
        noise: &noise,
        repeats: 2,
    };
    denoiser(&loaded, batch).sample(&subjects, 200, None, tick)
}

#[test]
fn the_number_of_rows_at_once_changes_nothing() {
    for n_classes in [0, 2] {
        let whole = sample(12, n_classes, &mut || Ok(())).unwrap().images;
        for batch in [1, 5, 8] {
            let parts = sample(batch, n_classes, &mut || Ok(())).unwrap().images;
            let worst = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{batch} at once: off by {worst}");
        }
    }
}

#[test]
fn evaluations_are_announced() {
    let loaded = untrained(4, 2, &Device::Cpu).unwrap();
    for batch in [1, 8, 100] {
        let mut ticks = 0;
        sample(batch, 2, &mut || {
            ticks += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(denoiser(&loaded, batch).evaluations(6, 200), ticks);
    }
}

#[test]
fn the_error_of_the_caller_comes_back_as_it_was() {
    let err = sample(4, 2, &mut || Err("stop".into())).unwrap_err();
    assert!(matches!(err, DenoiseError::Caller(refusal) if refusal.to_string() == "stop"));
}

#[test]
fn pixels_that_are_not_finite_are_an_error() {
    let loaded = untrained(4, 0, &Device::Cpu).unwrap();
    let mut images = vec![0.5; 2 * LEN];
    images[LEN] = f32::NAN;
    let noise = vec![0.0; 2 * LEN];
    let images = Images::new(&images, (4, 4)).unwrap();
    let subjects = Subjects { images, classes: &[0, 0], noise: &noise, repeats: 1 };
    let err = denoiser(&loaded, 8).sample(&subjects, 0, None, &mut || Ok(())).unwrap_err();
    assert!(err.to_string().contains("image 1 of"), "{err}");
}

#[test]
fn sizes_must_agree() {
    let loaded = untrained(4, 0, &Device::Cpu).unwrap();
    let values = vec![0.5; 2 * LEN];
    let images = Images::new(&values, (4, 4)).unwrap();
    let subjects = Subjects { images, classes: &[0, 0], noise: &[0.0; LEN], repeats: 1 };
    let denoiser = denoiser(&loaded, 8);
    let err = denoiser.sample(&subjects, 0, None, &mut || Ok(())).unwrap_err().to_string();
    assert_eq!(err, "noise of images expected 96 values, got 48");
    assert!(denoiser.noised(&subjects, 0).is_err());
    assert!(Images::new(&values, (5, 4)).is_err() && Images::new(&values, (0, 4)).is_err());
}

#[test]
fn timestep_zero_takes_no_noise_away() {
    let loaded = untrained(4, 0, &Device::Cpu).unwrap();
    let values = formula::uniform("images", 2 * LEN, 0.0, 1.0);
    let images = Images::new(&values, (4, 4)).unwrap();
    let noise: Vec<f32> = (0..4).flat_map(|row| noise(0, row, 0, LEN)).collect();
    let subjects = Subjects { images, classes: &[0, 0], noise: &noise, repeats: 2 };
    let denoiser = denoiser(&loaded, 8);
    let sample = denoiser.sample(&subjects, 0, None, &mut || unreachable!()).unwrap();
    assert_eq!(sample.images, denoiser.noised(&subjects, 0).unwrap());
    assert_ne!(sample.images, denoiser.noised(&subjects, 1).unwrap());
}
