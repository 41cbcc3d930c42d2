//! Images from noise.
//!
//! The noise and the random class of an image follow from the seed and the image's number alone,
//! so neither the size of a batch nor the shard that an image falls into changes it. As in the
//! reference, noise is taken for the state that [`Sampler::noise_state`] says, and its denoising
//! ends at the clean end, `-1`.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use oodbench_nn::formula::Stream;

use crate::guidance::Guided;
use crate::net::EpsModel;
use crate::sampler::Sampler;

/// The error of a caller's function, as it came.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Why images could not be sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    #[error("class expected below {n_classes}, got {got}")]
    Class { n_classes: usize, got: u32 },
    #[error("class expected none for a network without classes, got {got}")]
    NoClasses { got: u32 },
    #[error("classes expected one for each of {expected} images, got {got}")]
    Listed { expected: usize, got: usize },
    #[error("image {image} expected finite pixels, got {got}")]
    NotFinite { image: usize, got: f32 },
    #[error("sample images {} to {}", images.start, images.end)]
    Network {
        images: Range<usize>,
        #[source]
        source: Box<candle_core::Error>,
    },
    /// What the caller's own function said.
    #[error(transparent)]
    Caller(Refusal),
}

/// Which class an image is to show. A network without classes passes over all but [`Self::One`]
/// and [`Self::Listed`], which it refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classes {
    /// Any, from the seed and the image's number.
    Random,
    /// Image 0 shows class 0, image 1 class 1, and so on, again and again.
    RoundRobin,
    /// All images show this one.
    One(u32),
    /// One for each image asked for, in their order.
    Listed(Vec<u32>),
}

/// What to sample.
pub struct Request<'a> {
    pub model: &'a dyn EpsModel,
    pub sampler: Sampler<'a>,
    /// Numbers of the images. `0..n` is a whole sample; parts of it are shards.
    pub images: Range<usize>,
    pub seed: u64,
    pub classes: Classes,
    /// The weight of the guidance; unused by a network without classes.
    pub beta: f64,
    /// Images in one evaluation of the network, both branches of the guidance counted. An adaptive
    /// method takes one image at a time.
    pub batch: usize,
    pub device: &'a Device,
}

/// Some of the images.
pub struct Samples {
    /// The number of the first one.
    pub first: usize,
    /// `[n, 3, side, side]`, `f32`, in `[0, 1]`, on the device of the request.
    pub images: Tensor,
    /// The class of each; empty for a network without classes.
    pub classes: Vec<u32>,
}

impl Request<'_> {
    /// Images that are sampled at once.
    pub fn rows_at_once(&self) -> usize {
        if self.sampler.method.is_adaptive() {
            return 1;
        }
        let branches = if self.model.n_classes() > 0 && self.beta != 0.0 { 2 } else { 1 };
        (self.batch / branches).max(1)
    }

    /// How often the network is evaluated, and `tick` called; a guess for an adaptive method.
    pub fn evaluations(&self) -> usize {
        let of_one = self.sampler.evaluations(self.sampler.noise_state(), -1);
        self.images.len().div_ceil(self.rows_at_once()) * of_one
    }

    /// The noise that image `number` is made of.
    fn noise(&self, number: usize, len: usize) -> impl Iterator<Item = f32> {
        let mut stream = Stream::new(&format!("sample/{}/{number}/noise", self.seed));
        (0..len).map(move |_| stream.next_normal() as f32)
    }

    /// The class of image `number`.
    fn class(&self, number: usize) -> Result<u32, SampleError> {
        let n_classes = self.model.n_classes();
        let class = match &self.classes {
            Classes::Random => {
                let mut stream = Stream::new(&format!("sample/{}/{number}/class", self.seed));
                (stream.next_f64() * n_classes as f64) as u32
            }
            Classes::RoundRobin => (number % n_classes.max(1)) as u32,
            Classes::One(class) => *class,
            Classes::Listed(classes) => classes[number - self.images.start],
        };
        match class as usize {
            got if got < n_classes => Ok(class),
            _ => Err(SampleError::Class { n_classes, got: class }),
        }
    }

    fn all_classes(&self) -> Result<Vec<u32>, SampleError> {
        if let Classes::Listed(classes) = &self.classes
            && classes.len() != self.images.len()
        {
            return Err(SampleError::Listed { expected: self.images.len(), got: classes.len() });
        }
        if self.model.n_classes() > 0 {
            return self.images.clone().map(|number| self.class(number)).collect();
        }
        match &self.classes {
            Classes::Random | Classes::RoundRobin => Ok(Vec::new()),
            Classes::One(got) => Err(SampleError::NoClasses { got: *got }),
            Classes::Listed(classes) => match classes.first() {
                Some(got) => Err(SampleError::NoClasses { got: *got }),
                None => Ok(Vec::new()),
            },
        }
    }
}

/// Samples images and hands them over batch by batch, in the order of their numbers.
///
/// `tick` is called before each evaluation of the network; its error, or that of `on_batch`, ends
/// the work and comes back as [`SampleError::Caller`].
///
/// # Errors
/// A class that the network does not have, settings that the sampler refuses, pixels that are not
/// finite, and what the callbacks say.
pub fn sample(
    request: &Request<'_>,
    tick: &mut dyn FnMut() -> Result<(), Refusal>,
    on_batch: &mut dyn FnMut(Samples) -> Result<(), Refusal>,
) -> Result<(), SampleError> {
    let all_classes = request.all_classes()?;
    let mut first = request.images.start;
    while first < request.images.end {
        let numbers = first..request.images.end.min(first + request.rows_at_once());
        let classes = match all_classes.is_empty() {
            true => Vec::new(),
            false => all_classes[first - request.images.start..][..numbers.len()].to_vec(),
        };
        let mut refusal = None;
        let mut tick = || {
            tick().map_err(|err| {
                refusal = Some(err);
                candle_core::Error::msg("stopped by the caller")
            })
        };
        let images = match denoised(request, numbers.clone(), &classes, &mut tick) {
            Ok(images) => images,
            Err(source) => {
                return Err(match refusal {
                    Some(refusal) => SampleError::Caller(refusal),
                    None => SampleError::Network { images: numbers, source: Box::new(source) },
                });
            }
        };
        let images = in_unit_range(images, first)?;
        on_batch(Samples { first, images, classes }).map_err(SampleError::Caller)?;
        first = numbers.end;
    }
    Ok(())
}

/// `[n, 3, side, side]`, in `[-1, 1]` or thereabouts.
fn denoised(
    request: &Request<'_>,
    numbers: Range<usize>,
    classes: &[u32],
    tick: &mut dyn FnMut() -> candle_core::Result<()>,
) -> candle_core::Result<Tensor> {
    let side = request.model.image_size();
    let n = numbers.len();
    let noise: Vec<f32> =
        numbers.flat_map(|number| request.noise(number, 3 * side * side)).collect();
    let x = Tensor::from_vec(noise, (n, 3, side, side), request.device)?;
    let classes = match classes {
        [] => None,
        classes => Some(Tensor::new(classes, request.device)?),
    };
    let guided = Guided { model: request.model, classes, beta: request.beta };
    request.sampler.run(&x, request.sampler.noise_state(), -1, |x, t| {
        tick()?;
        guided.eps(x, t)
    })
}

/// Maps `[-1, 1]` to `[0, 1]` and clamps.
fn in_unit_range(images: Tensor, first: usize) -> Result<Tensor, SampleError> {
    let numbers = first..first + images.dims()[0];
    let mapped = (|| {
        // What is not finite makes its image's sum so.
        let sums = images.flatten_from(1)?.sum(1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let images = images.affine(0.5, 0.5)?.clamp(0.0, 1.0)?;
        Ok((sums, images))
    })();
    let (sums, images): (Vec<f32>, Tensor) = mapped
        .map_err(|source| SampleError::Network { images: numbers, source: Box::new(source) })?;
    match sums.iter().position(|sum| !sum.is_finite()) {
        Some(i) => Err(SampleError::NotFinite { image: first + i, got: sums[i] }),
        None => Ok(images),
    }
}

#[cfg(test)]
mod tests {
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
        check(Classes::Listed(vec![1, 1, 0, 2, 0, 0, 1]), &[1, 1, 0, 2, 0, 0, 1]);
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
    fn what_cannot_be_sampled_is_refused() {
        let schedule = schedule();
        let check = |request: Request<'_>, expected: &str| {
            assert_eq!(run(&request).unwrap_err().to_string(), expected);
        };
        let ddim = |model| request(model, &schedule, Method::Ddim);
        let classes = Classes::One(3);
        check(Request { classes, ..ddim(&CONDITIONAL) }, "class expected below 3, got 3");
        let classes = Classes::Listed(vec![0; 6]);
        check(
            Request { classes, ..ddim(&CONDITIONAL) },
            "classes expected one for each of 7 images, got 6",
        );
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
}
