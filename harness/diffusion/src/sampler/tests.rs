//! Tests of whole trajectories.

use super::*;
use crate::schedule::ScheduleConfig;

fn schedule() -> Schedule {
    Schedule::new(&ScheduleConfig::default())
}

fn zeros() -> Tensor {
    Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn the_last_stride_may_be_shorter() {
    assert_eq!(trajectory(&schedule(), 50, 119, -1), [119, 99, 79, 59, 39, 19, -1]);
    assert_eq!(trajectory(&schedule(), 50, 50, -1), [50, 30, 10, -1]);
    assert_eq!(trajectory(&schedule(), 20, -1, 99), [-1, 49, 99]);
    assert_eq!(trajectory(&schedule(), 50, -1, -1), [-1]);
}

#[test]
fn noise_is_taken_for_the_state_of_the_reference() {
    let schedule = schedule();
    let noise_state = |method, indexing| {
        Sampler { indexing, ..Sampler::new(&schedule, method, 50) }.noise_state()
    };
    assert_eq!(noise_state(Method::Ddim, Indexing::Reference), 980);
    assert_eq!(Sampler::new(&schedule, Method::Ddim, 1000).noise_state(), 998);
    assert_eq!(noise_state(Method::Pndm4, Indexing::Aligned), 999);
    assert_eq!(noise_state(Method::Ndm1, Indexing::Reference), 999);
    assert_eq!(noise_state(Method::Pf, Indexing::Reference), 999);
}

#[test]
fn a_perfect_model_gives_the_image_back() {
    let clean = (zeros() + 0.5).unwrap();
    let noise = (zeros() - 1.25).unwrap();
    let schedule = schedule();
    let x = schedule.diffuse(&clean, &[360], &noise).unwrap();
    for method in [Method::Ddim, Method::Pndm2, Method::Pndm4] {
        for (indexing, left) in
            [(Indexing::Reference, f64::from(schedule.alpha_bar()[0])), (Indexing::Aligned, 1.0)]
        {
            let sampler = Sampler { indexing, ..Sampler::new(&schedule, method, 50) };
            let start = sampler.state_of(360);
            let end = sampler.run(&x, start, -1, |_, _| Ok(noise.clone())).unwrap();
            let expected = left.sqrt() * 0.5 - (1.0 - left).sqrt() * 1.25;
            let got = end.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
            assert!((f64::from(got) - expected).abs() < 1e-5, "{method}: {got} {expected}");
        }
    }
}

/// The noise of normal data with the given variance, whose states stay normal: the flow can be
/// solved, so that every method can be held against the truth.
fn normal_noise(schedule: &Schedule, variance: f64) -> impl Fn(&Tensor, f64) -> Result<Tensor> {
    // What the network is told lies between states; see `flow`.
    let (first, last) = (f64::from(schedule.betas()[0]), f64::from(schedule.betas()[999]));
    move |x, t| {
        // Encoding begins with the question about step -1.
        let u = (t / 999.0).max(0.0);
        let signal = (-1000.0 * (0.5 * u * u * (last - first) + u * first)).exp();
        x * ((1.0 - signal).sqrt() / (signal * variance + 1.0 - signal))
    }
}

#[test]
fn every_method_turns_noise_into_data() {
    let schedule = schedule();
    let variance: f64 = 0.16;
    let x = (zeros() + 1.5).unwrap();
    let cases = [(Method::Ddim, 0.05), (Method::Ndm1, 0.2), (Method::Ndm4, 0.02)];
    let more = [(Method::Pndm2, 0.05), (Method::Pndm4, 0.05), (Method::Pf, 5e-3)];
    for (method, tolerance) in cases.into_iter().chain(more) {
        let sampler = Sampler::new(&schedule, method, 100);
        let end =
            sampler.run(&x, sampler.noise_state(), -1, normal_noise(&schedule, variance)).unwrap();
        let got = f64::from(end.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
        // A quantile stays a quantile: 1.5 standard deviations.
        let expected = 1.5 * variance.sqrt();
        assert!((got / expected - 1.0).abs() < tolerance, "{method}: {got} is not {expected}");
    }
}

#[test]
fn encoding_and_denoising_undo_each_other() {
    let schedule = schedule();
    let x = (zeros() + 0.3).unwrap();
    for indexing in [Indexing::Reference, Indexing::Aligned] {
        for method in [Method::Pndm4, Method::Ndm4, Method::Pf] {
            let sampler = Sampler { indexing, ..Sampler::new(&schedule, method, 100) };
            let eps = normal_noise(&schedule, 0.16);
            let there = sampler.run(&x, -1, 589, &eps).unwrap();
            let back = sampler.run(&there, 589, -1, &eps).unwrap();
            let got = back.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
            assert!((got - 0.3).abs() < 0.01, "{method} {indexing:?}: {got}");
        }
    }
}

#[test]
fn evaluations_are_counted_beforehand() {
    let schedule = schedule();
    for method in Method::ALL {
        let sampler = Sampler::new(&schedule, method, 50);
        for start in [-1, 0, 39, 119] {
            let mut asked = 0;
            let count = |x: &Tensor, _| {
                asked += 1;
                Ok(x.clone())
            };
            let end = sampler.run(&zeros(), start, -1, count).unwrap();
            let values = end.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|x| x.is_finite()), "{method} from {start}");
            if !method.is_adaptive() {
                assert_eq!(sampler.evaluations(start, -1), asked, "{method} from {start}");
            }
        }
    }
}

#[test]
fn what_lies_outside_of_the_schedule_is_an_error() {
    let schedule = schedule();
    let check = |sampler: Sampler<'_>, start, expected: &str| {
        let err = sampler.run(&zeros(), start, -1, |x, _| Ok(x.clone())).unwrap_err().to_string();
        assert!(err.contains(expected), "{err}");
    };
    let ddim = Sampler::new(&schedule, Method::Ddim, 50);
    check(ddim, 999, "between -1 and 998, got 999");
    check(Sampler { indexing: Indexing::Aligned, ..ddim }, 1000, "between -1 and 999, got 1000");
    check(Sampler { method: Method::Ndm1, ..ddim }, 1000, "between -1 and 999, got 1000");
    check(Sampler { sample_steps: 0, ..ddim }, 10, "from 1 to 1000, got 0");
    check(Sampler { sample_steps: 2000, ..ddim }, 10, "from 1 to 1000, got 2000");
    let pf = Sampler::new(&schedule, Method::Pf, 50);
    check(Sampler { tolerance: 0.0, ..pf }, 10, "tolerance expected a positive number, got 0");
}

/// The stand-in for a network that the golden numbers use: `0.6 tanh(x) + 0.3 sin(t / 100)`.
fn analytic(x: &Tensor, t: f64) -> Result<Tensor> {
    (x.tanh()? * 0.6)? + f64::from(0.3f32 * ((t / 100.0) as f32).sin())
}

#[test]
fn pf_takes_the_steps_of_the_reference() {
    // The reference's `multi_iteration(continuous=True)` with `sample_speed` set, on scipy 1.17:
    // evaluations, accepted steps, the first values and the mean.
    let schedule = schedule();
    let noise = oodbench_nn::formula::normal("xn", 384);
    let noise = Tensor::from_vec(noise, (2, 3, 8, 8), &Device::Cpu).unwrap();
    let check =
        |x: &Tensor, (start, end), tolerance, (asked, steps), values: [f64; 4], mean: f64| {
            let sampler = Sampler { tolerance, ..Sampler::new(&schedule, Method::Pf, 50) };
            let mut count = 0;
            let eps = |x: &Tensor, t| {
                count += 1;
                analytic(x, t)
            };
            let states = sampler.states(x, start, end, eps).unwrap();
            assert_eq!((count, states.len() - 1), (asked, steps));
            let got = states[steps].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let n = got.len() as f64;
            let got_mean = got.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let spread = got.iter().map(|&x| (f64::from(x) - got_mean).powi(2)).sum::<f64>() / n;
            let off = got.iter().zip(values).map(|(&got, value)| (f64::from(got) - value).abs());
            let worst = off.fold((got_mean - mean).abs(), f64::max) / spread.sqrt();
            // One ulp of the `f32` exponential is 3e-4 of sigma at time 0.001, where encoding begins.
            let allowed = if start == -1 { 1e-4 } else { 1e-5 };
            assert!(worst < allowed, "off by {worst} standard deviations");
        };
    check(
        &noise,
        (999, -1),
        TOLERANCE,
        (50, 7),
        [132.15896606445312, -7.150913715362549, -12.788625717163086, 47.975738525390625],
        -10.301947593688965,
    );
    // One image alone chooses other steps.
    check(
        &noise.narrow(0, 0, 1).unwrap(),
        (999, -1),
        TOLERANCE,
        (50, 7),
        [132.16009521484375, -7.151177406311035, -12.788887023925781, 47.97616958618164],
        -12.99802017211914,
    );
    check(
        &noise,
        (999, -1),
        1e-5,
        (104, 15),
        [132.17428588867188, -7.158652305603027, -12.79770278930664, 47.980857849121094],
        -10.300976753234863,
    );
    check(
        &noise,
        (119, -1),
        TOLERANCE,
        (14, 2),
        [1.3338627815246582, -0.2368742823600769, -0.3365451693534851, 0.7261378765106201],
        -0.10794219374656677,
    );
    // Encoding.
    check(
        &noise.tanh().unwrap(),
        (-1, 979),
        TOLERANCE,
        (50, 6),
        [0.32248300313949585, 0.15277056396007538, 0.13205327093601227, 0.30388879776000977],
        0.1840449571609497,
    );
}
