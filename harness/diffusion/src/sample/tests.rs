//! Tests of sampling, on a model that is an expression.

use super::*;
use crate::net::Pass;
use crate::sampler::Method;
use crate::schedule::{Schedule, ScheduleConfig};

/// Noise that depends on the state, the step, the class and nothing else.
struct Analytic {
    n_classes: usize,
    factor: f64,
}

impl EpsModel for Analytic {
    fn eps(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        y: Option<&Tensor>,
        _: Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        let shift = (t / 1000.0)?.reshape(((), 1, 1, 1))?;
        let eps = (x_t.tanh()? * self.factor)?.broadcast_add(&shift)?;
        match y {
            Some(y) => {
                let y = (y.to_dtype(DType::F32)? * 0.05)?.reshape(((), 1, 1, 1))?;
                eps.broadcast_add(&y)
            }
            None => Ok(eps),
        }
    }

    fn n_classes(&self) -> usize {
        self.n_classes
    }

    fn image_size(&self) -> usize {
        4
    }
}

const CONDITIONAL: Analytic = Analytic { n_classes: 3, factor: 0.6 };

fn schedule() -> Schedule {
    Schedule::new(&ScheduleConfig::default())
}

fn request<'a>(model: &'a Analytic, schedule: &'a Schedule, method: Method) -> Request<'a> {
    Request {
        model,
        sampler: Sampler::new(schedule, method, 10),
        images: 0..7,
        seed: 5,
        classes: Classes::Random,
        beta: 2.0,
        batch: 64,
        device: &Device::Cpu,
    }
}

/// All pixels and classes, and how often the network was asked.
fn run(request: &Request<'_>) -> Result<(Vec<f32>, Vec<u32>, usize), SampleError> {
    let (mut pixels, mut classes, mut asked) = (Vec::new(), Vec::new(), 0);
    sample(
        request,
        &mut || {
            asked += 1;
            Ok(())
        },
        &mut |samples| {
            assert_eq!(samples.first, request.images.start + pixels.len() / 48);
            pixels.extend(samples.images.flatten_all()?.to_vec1::<f32>()?);
            classes.extend(samples.classes);
            Ok(())
        },
    )?;
    Ok((pixels, classes, asked))
}

#[test]
fn batch_and_shard_change_nothing() {
    let schedule = schedule();
    for method in [Method::Pndm4, Method::Ndm4, Method::Pf] {
        let (pixels, classes, _) = run(&request(&CONDITIONAL, &schedule, method)).unwrap();
        assert!(pixels.iter().all(|x| (0.0..=1.0).contains(x)));
        for batch in [1, 5] {
            let small = Request { batch, ..request(&CONDITIONAL, &schedule, method) };
            assert_eq!(run(&small).unwrap().0, pixels, "{method} {batch}");
        }
        let shard = Request { images: 2..5, ..request(&CONDITIONAL, &schedule, method) };
        let (part, part_classes, _) = run(&shard).unwrap();
        assert_eq!(part, pixels[2 * 48..5 * 48]);
        assert_eq!(part_classes, classes[2..5]);
    }
}

#[test]
fn a_seed_gives_other_images() {
    let schedule = schedule();
    let one = request(&CONDITIONAL, &schedule, Method::Ddim);
    let other = Request { seed: 6, ..request(&CONDITIONAL, &schedule, Method::Ddim) };
    assert_ne!(run(&one).unwrap().0, run(&other).unwrap().0);
}

#[test]
fn classes_are_those_asked_for() {
    let schedule = schedule();
    let check = |classes: Classes, expected: &[u32]| {
        let request = Request { classes, ..request(&CONDITIONAL, &schedule, Method::Ddim) };
        assert_eq!(run(&request).unwrap().1, expected);
    };
    check(Classes::RoundRobin, &[0, 1, 2, 0, 1, 2, 0]);
    check(Classes::One(2), &[2; 7]);
    let many = Request { images: 0..300, ..request(&CONDITIONAL, &schedule, Method::Ddim) };
    let drawn = run(&many).unwrap().1;
    for class in 0..3 {
        let count = drawn.iter().filter(|&&y| y == class).count();
        assert!((70..130).contains(&count), "class {class} drawn {count} times of 300");
    }
}

#[test]
fn evaluations_are_announced() {
    let schedule = schedule();
    for (n_classes, batch) in [(0, 1), (0, 4), (3, 4), (3, 100)] {
        let model = Analytic { n_classes, factor: 0.6 };
        let request = Request { batch, ..request(&model, &schedule, Method::Pndm2) };
        assert_eq!(run(&request).unwrap().2, request.evaluations());
    }
}

#[test]
fn what_is_held_does_not_grow_with_the_number_of_images() {
    // So many classes would fit into no memory.
    let schedule = schedule();
    let endless = Request {
        images: 0..usize::MAX,
        batch: 2,
        ..request(&CONDITIONAL, &schedule, Method::Ddim)
    };
    assert!(endless.evaluations() > usize::MAX / 2);
    let mut batches = 0;
    let mut stop = |samples: Samples| {
        batches += 1;
        assert_eq!(samples.classes.len(), 1);
        if batches == 2 { Err("enough".into()) } else { Ok(()) }
    };
    let err = sample(&endless, &mut || Ok(()), &mut stop).unwrap_err();
    assert_eq!(err.to_string(), "enough");
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let schedule = schedule();
    let check = |request: Request<'_>, expected: &str| {
        assert_eq!(run(&request).unwrap_err().to_string(), expected);
    };
    let ddim = |model| request(model, &schedule, Method::Ddim);
    let classes = Classes::One(3);
    check(Request { classes, ..ddim(&CONDITIONAL) }, "class expected below 3, got 3");
    let plain = Analytic { n_classes: 0, factor: 0.6 };
    let classes = Classes::One(0);
    check(
        Request { classes, ..ddim(&plain) },
        "class expected none for a network without classes, got 0",
    );
    let mad = Analytic { n_classes: 0, factor: f64::NAN };
    check(ddim(&mad), "image 0 expected finite pixels, got NaN");
}

#[test]
fn the_error_of_the_caller_comes_back_as_it_was() {
    let schedule = schedule();
    let request = request(&CONDITIONAL, &schedule, Method::Ddim);
    let err = sample(&request, &mut || Err("enough".into()), &mut |_| Ok(())).unwrap_err();
    assert_eq!(err.to_string(), "enough");
    let err = sample(&request, &mut || Ok(()), &mut |_| Err("full".into())).unwrap_err();
    assert_eq!(err.to_string(), "full");
}
