//! Tests of the interpolation study, on a model that is an expression.

use super::*;
use crate::net::Pass;
use crate::sampler::Method;
use crate::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::formula;

/// `0.6 tanh(x) + 0.3 sin(t / 100)`; must be told "no class".
struct Analytic;

impl EpsModel for Analytic {
    fn eps(&self, x_t: &Tensor, t: &Tensor, y: Option<&Tensor>, _: Pass<'_>) -> Result<Tensor> {
        assert!(y.unwrap().to_vec1::<u32>()?.iter().all(|&y| y == 10));
        let shift = ((t / 100.0)?.sin()? * 0.3)?.reshape(((), 1, 1, 1))?;
        (x_t.tanh()? * 0.6)?.broadcast_add(&shift)
    }

    fn n_classes(&self) -> usize {
        10
    }

    fn image_size(&self) -> usize {
        4
    }
}

fn schedule() -> Schedule {
    Schedule::new(&ScheduleConfig::default())
}

fn interpolation(schedule: &Schedule, steps: usize) -> Interpolation<'_> {
    let sampler = Sampler::new(schedule, Method::Pndm4, steps);
    Interpolation { model: &Analytic, sampler, angle: Angle::PerPair, batch: 64 }
}

fn images(name: &str, n: usize) -> Tensor {
    let values = formula::uniform(name, n * 48, 0.0, 1.0);
    Tensor::from_vec(values, (n, 3, 4, 4), &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let squares = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    squares.sqrt()
}

#[test]
fn strides_are_those_of_the_reference() {
    let schedule = schedule();
    let strides = |steps| interpolation(&schedule, steps).strides();
    assert_eq!(strides(50), [5, 10, 15, 20, 25, 30, 35, 40, 45]);
    assert_eq!(strides(20), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
    assert_eq!(strides(4), [1, 2, 3]);
    assert_eq!(interpolation(&schedule, 50).encoded(), 979);
    assert_eq!(interpolation(&schedule, 20).encoded(), 949);
}

#[test]
fn each_study_leads_from_one_image_to_the_other() {
    let schedule = schedule();
    let (a, b) = (images("a", 1), images("b", 1));
    let studies = interpolation(&schedule, 50).run(&a, &b, &mut || Ok(())).unwrap();
    let step = |study: &Tensor, i: usize| study.narrow(1, i, 1).unwrap().squeeze(1).unwrap();
    for (name, study, from) in [
        ("first", &studies.first, &a),
        ("second", &studies.second, &b),
        ("between", &studies.between, &a),
    ] {
        let there: Vec<f32> = (0..9).map(|i| distance(&step(study, i), from)).collect();
        assert!(there[0] < there[4] && there[4] < there[8], "{name}: {there:?}");
    }
    // Only the last study goes the whole way for a model that is no network.
    assert!(distance(&step(&studies.between, 8), &b) < distance(&step(&studies.between, 0), &b));
}

#[test]
fn the_studies_are_those_of_the_reference() {
    // The reference's `interpolation` with this model in the place of the network: the mean
    // of the first pair's image, and the last pixel of the second pair's last channel.
    let schedule = schedule();
    let interpolation = Interpolation { angle: Angle::WholeBatch, ..interpolation(&schedule, 50) };
    let (a, b) = (images("a", 2), images("b", 2));
    let studies = interpolation.run(&a, &b, &mut || Ok(())).unwrap();
    let check = |study: &Tensor, expected: [(f32, f32); 3]| {
        for (i, (mean, last)) in [0, 4, 8].into_iter().zip(expected) {
            let of_pair = |pair: usize| values(&study.get(pair).unwrap().get(i).unwrap());
            let (first, second) = (of_pair(0), of_pair(1));
            let got = (first.iter().sum::<f32>() / 48.0, second[47]);
            assert!((got.0 - mean).abs() < 1e-5 && (got.1 - last).abs() < 1e-5, "{i}: {got:?}");
        }
    };
    let first = [(0.474055, 0.621568), (0.607061, 0.713657), (0.316427, 0.510814)];
    check(&studies.first, first);
    let second = [(0.488141, 0.685704), (0.612101, 0.729808), (0.314472, 0.471195)];
    check(&studies.second, second);
    let between = [(0.473793, 0.647601), (0.498736, 0.710708), (0.488447, 0.714685)];
    check(&studies.between, between);
}

#[test]
fn the_number_of_images_at_once_changes_nothing_and_is_announced() {
    let schedule = schedule();
    let (a, b) = (images("a", 3), images("b", 3));
    let mut all = Vec::new();
    for batch in [64, 4, 1] {
        let interpolation = Interpolation { batch, ..interpolation(&schedule, 10) };
        let mut asked = 0;
        let mut tick = || {
            asked += 1;
            Ok(())
        };
        let studies = interpolation.run(&a, &b, &mut tick).unwrap();
        assert_eq!(asked, interpolation.evaluations(3));
        all.push([studies.first, studies.second, studies.between].map(|x| values(&x)));
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

#[test]
fn slerp_keeps_to_the_sphere() {
    let device = &Device::Cpu;
    let vector = |x: f32, y: f32| Tensor::from_vec(vec![x, y], (1, 1, 1, 2), device).unwrap();
    let half = slerp(&vector(1.0, 0.0), &vector(0.0, 1.0), 0.5, Angle::PerPair).unwrap();
    assert!(values(&half).iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-6));
    let same = slerp(&vector(1.0, 2.0), &vector(1.0, 2.0), 0.3, Angle::PerPair).unwrap();
    assert!(distance(&same, &vector(1.0, 2.0)) < 1e-6);
}

#[test]
fn the_angle_of_the_reference_is_that_of_the_batch() {
    // From PyTorch, with the formula of the reference, at a share of 0.3:
    // z1 = [[1, 0], [0, 2]], z2 = [[0, 1], [1, 2]].
    let pairs = |v: [f32; 4]| Tensor::from_vec(v.to_vec(), (2, 1, 1, 2), &Device::Cpu).unwrap();
    let (a, b) = (pairs([1.0, 0.0, 0.0, 2.0]), pairs([0.0, 1.0, 1.0, 2.0]));
    let batch = values(&slerp(&a, &b, 0.3, Angle::WholeBatch).unwrap());
    for (got, expected) in batch.iter().zip([0.735509, 0.327468, 0.327468, 2.125953]) {
        assert!((got - expected).abs() < 1e-5, "{batch:?}");
    }
    let one =
        slerp(&a.narrow(0, 0, 1).unwrap(), &b.narrow(0, 0, 1).unwrap(), 0.3, Angle::WholeBatch);
    let both = values(&slerp(&a, &b, 0.3, Angle::PerPair).unwrap());
    assert_eq!(values(&one.unwrap()), both[..2]);
}

#[test]
fn what_cannot_be_interpolated_is_refused() {
    let schedule = schedule();
    let (a, b) = (images("a", 1), images("b", 2));
    let run = |steps, a: &Tensor, b: &Tensor| {
        let err = interpolation(&schedule, steps).run(a, b, &mut || Ok(()));
        err.err().unwrap().to_string()
    };
    assert!(run(50, &a, &b).contains("got [1, 3, 4, 4] and [2, 3, 4, 4]"));
    assert_eq!(run(1, &a, &a), "sample steps expected two at least, got 1");
    let infinite = (&a * f64::INFINITY).unwrap();
    assert!(run(10, &a, &infinite).contains("expected finite pixels"));
    let stopped = interpolation(&schedule, 10).run(&a, &a, &mut || Err("enough".into()));
    assert_eq!(stopped.err().unwrap().to_string(), "enough");
}
