//! A synthetic feature set, and a host for detectors that read nothing else.

use std::sync::Arc;

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::abi_stable::std_types::{
    RNone, ROption, RResult, RSlice, RSliceMut, RSome, RStr, RString, RVec,
};
use oodbench_abi::{
    DetectorBox, ErrorCode, FitData, ForwardOutputs, Head, Host, Host_TO, LogLevel, NamedTensor,
    Needs, RawError, RawResult, ScoreBatch, SplitId, SplitView, TensorView,
};
use oodbench_posthoc::numeric::random::Random;

/// Sizes of a feature set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) n_train: usize,
    pub(crate) n_val: usize,
    pub(crate) n_test: usize,
    pub(crate) n_features: usize,
    pub(crate) n_classes: usize,
}

/// Images as the classifier sees them.
#[derive(Default)]
pub(crate) struct Split {
    pub(crate) labels: Vec<i64>,
    /// `[len, n_classes]`
    pub(crate) logits: Vec<f32>,
    /// `[len, n_features]`
    pub(crate) features: Vec<f32>,
}

/// A feature set with the last layer of its classifier.
pub(crate) struct Set {
    pub(crate) n_features: usize,
    pub(crate) n_classes: usize,
    /// `[n_classes, n_features]`
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) train: Split,
    pub(crate) val: Split,
    pub(crate) val_ood: Split,
    pub(crate) test: Split,
}

/// A normal random number, by the sum of twelve uniform ones.
fn normal(random: &mut Random) -> f64 {
    (0..12).map(|_| random.unit()).sum::<f64>() - 6.0
}

/// Where images come from.
struct Recipe {
    n_features: usize,
    n_classes: usize,
    /// `[n_classes, n_features]`
    means: Vec<f64>,
    /// Directions that images of a class differ in, `[directions, n_features]`.
    shared: Vec<f64>,
}

/// Directions that images of a class differ in.
const DIRECTIONS: usize = 12;

impl Recipe {
    fn new(sizes: Sizes, random: &mut Random) -> Self {
        let (d, k) = (sizes.n_features, sizes.n_classes);
        // One feature in three is typical of a class.
        let means = (0..k * d).map(|_| if random.unit() < 0.3 { -random.unit().ln() } else { 0.0 });
        let means = means.collect();
        let shared = (0..DIRECTIONS * d).map(|_| 0.15 * normal(random)).collect();
        Self { n_features: d, n_classes: k, means, shared }
    }

    fn mean(&self, class: usize) -> &[f64] {
        &self.means[class * self.n_features..(class + 1) * self.n_features]
    }

    /// The features of an image, rectified: of its class, between two classes, or of none.
    fn image(&self, of: (usize, usize), far: bool, random: &mut Random) -> Vec<f32> {
        let gain = (0.15 * normal(random)).exp();
        let along: Vec<f64> = (0..DIRECTIONS).map(|_| normal(random)).collect();
        let (one, other) = (self.mean(of.0), self.mean(of.1));
        let feature = |j: usize| {
            let along = along.iter().zip(self.shared[j..].iter().step_by(self.n_features));
            let shift: f64 = along.map(|(a, s)| a * s).sum();
            let mean = if far { -0.3 * random.unit().ln() } else { 0.5 * (one[j] + other[j]) };
            // A uniform number has a third of the cost of a normal one.
            (gain * mean + shift + 0.4 * (random.unit() - 0.5)).max(0.0) as f32
        };
        (0..self.n_features).map(feature).collect()
    }
}

impl Set {
    /// Rectified features with sparse class means, a gain and shared directions for each image, and
    /// noise. Validation and half of the test images are of the classes, a quarter of the test
    /// images lies between two, the rest and the OOD validation images have no class.
    pub(crate) fn new(sizes: Sizes, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let recipe = Recipe::new(sizes, &mut random);
        let Sizes { n_features: d, n_classes: k, .. } = sizes;
        let mut weight = Vec::with_capacity(k * d);
        let mut bias = Vec::with_capacity(k);
        // The nearest mean, softened; an offset that all classes have in common changes no
        // probability and gives the matrix full rank.
        for class in 0..k {
            let mean = recipe.mean(class);
            let soft = 24.0 / d as f64;
            weight.extend(mean.iter().map(|m| (soft * (m - 0.3) + 0.01) as f32));
            bias.push((-0.5 * soft * mean.iter().map(|m| m * m).sum::<f64>()) as f32);
        }
        let mut set = Self {
            n_features: d,
            n_classes: k,
            weight,
            bias,
            train: Split::default(),
            val: Split::default(),
            val_ood: Split::default(),
            test: Split::default(),
        };
        set.train = set.split(&recipe, sizes.n_train, |i| (i % k, i % k, false), &mut random);
        set.val = set.split(&recipe, sizes.n_val, |i| (i % k, i % k, false), &mut random);
        let far = |i: usize| (i % k, i % k, true);
        set.val_ood = set.split(&recipe, sizes.n_val, far, &mut random);
        let mixed = |i: usize| match i % 4 {
            0 | 1 => (i / 2 % k, i / 2 % k, false),
            2 => (i / 4 % k, (i / 4 + 1) % k, false),
            _ => (0, 0, true),
        };
        set.test = set.split(&recipe, sizes.n_test, mixed, &mut random);
        set
    }

    fn split(
        &self,
        recipe: &Recipe,
        n: usize,
        of: impl Fn(usize) -> (usize, usize, bool),
        random: &mut Random,
    ) -> Split {
        let mut split = Split::default();
        for i in 0..n {
            let (one, other, far) = of(i);
            let features = recipe.image((one, other), far, random);
            for (row, &bias) in self.weight.chunks_exact(self.n_features).zip(&self.bias) {
                let products =
                    row.iter().zip(&features).map(|(&w, &h)| f64::from(w) * f64::from(h));
                split.logits.push((products.sum::<f64>() + f64::from(bias)) as f32);
            }
            // Three labels in a hundred are wrong.
            let wrong = usize::from(i % 33 == 32);
            split.labels.push(((one + wrong) % recipe.n_classes) as i64);
            split.features.extend(features);
        }
        split
    }
}

impl Split {
    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    fn view<'a>(&'a self, needs: Needs, shapes: &'a Shapes) -> SplitView<'a> {
        let tensor = |need: Needs, values: &'a [f32], shape: &'a [usize; 2]| {
            let asked = needs.contains(need);
            if asked { TensorView::new(values, shape) } else { TensorView::absent() }
        };
        let labels: &[i64] = if needs.contains(Needs::LABELS) { &self.labels } else { &[] };
        SplitView {
            len: self.len(),
            labels: RSlice::from_slice(labels),
            logits: tensor(Needs::LOGITS, &self.logits, &shapes.logits),
            features: tensor(Needs::FEATURES, &self.features, &shapes.features),
        }
    }
}

struct Shapes {
    logits: [usize; 2],
    features: [usize; 2],
}

impl Shapes {
    fn new(set: &Set, n: usize) -> Self {
        Self { logits: [n, set.n_classes], features: [n, set.n_features] }
    }
}

/// A detector of the crate with its parameters.
///
/// # Errors
/// Parameters that it does not take.
pub(crate) fn create(id: &str, params: &str, set: &Arc<Set>) -> Result<DetectorBox, String> {
    let host = Host_TO::from_value(SetHost(Arc::clone(set)), TD_Opaque);
    oodbench_posthoc::create(id, params, host).map_err(|error| error.to_string())
}

/// Fits a detector on what its needs declare.
///
/// # Errors
/// What the detector says.
pub(crate) fn fit(detector: &mut DetectorBox, needs: Needs, set: &Set) -> Result<(), RawError> {
    let nothing = Split::default();
    let asked = |need, split| if needs.contains(need) { split } else { &nothing };
    let (train, val) = (asked(Needs::TRAIN, &set.train), asked(Needs::VAL, &set.val));
    let [of_train, of_val, of_ood] =
        [train, val, &set.val_ood].map(|split| Shapes::new(set, split.len()));
    let val_ood: ROption<SplitView<'_>> = match needs.contains(Needs::VAL_OOD) {
        true => RSome(set.val_ood.view(needs, &of_ood)),
        false => RNone,
    };
    let data = FitData {
        train: train.view(needs, &of_train),
        val: val.view(needs, &of_val),
        val_ood,
        n_classes: set.n_classes,
        n_features: set.n_features,
    };
    detector.fit(data).into_result()
}

/// Scores the first `n` test images in batches of `batch`.
///
/// # Errors
/// What the detector says.
pub(crate) fn score(
    detector: &mut DetectorBox,
    needs: Needs,
    set: &Set,
    n: usize,
    batch: usize,
) -> Result<Vec<f32>, RawError> {
    let n = n.min(set.test.len());
    let mut scores = vec![f32::NAN; n];
    for (first, out) in (0..n).step_by(batch).zip(scores.chunks_mut(batch)) {
        let len = out.len();
        let keys: Vec<u64> = (first..first + len).map(|i| i as u64).collect();
        let shapes = Shapes::new(set, len);
        let rows = |columns: usize| first * columns..(first + len) * columns;
        let (mut logits, mut features) = (TensorView::absent(), TensorView::absent());
        if needs.contains(Needs::LOGITS) {
            logits = TensorView::new(&set.test.logits[rows(set.n_classes)], &shapes.logits);
        }
        if needs.contains(Needs::FEATURES) {
            let values = &set.test.features[rows(set.n_features)];
            features = TensorView::new(values, &shapes.features);
        }
        let images = TensorView::absent();
        let keys = RSlice::from_slice(&keys);
        let batch = ScoreBatch { len, keys, logits, features, images };
        detector.score(batch, RSliceMut::from_mut_slice(out)).into_result()?;
    }
    Ok(scores)
}

/// A host that has the head of a feature set and nothing else.
struct SetHost(Arc<Set>);

fn unavailable<T>(service: &str) -> RawResult<T> {
    let message = format!("there is no `{service}` without images");
    RResult::RErr(RawError::new(ErrorCode::UNAVAILABLE, message))
}

impl Host for SetHost {
    fn log(&self, _level: LogLevel, _message: RStr<'_>) {
        // Only times are reported.
    }

    fn progress(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        false
    }

    fn seed(&self) -> u64 {
        0
    }

    fn threads(&self) -> usize {
        1
    }

    fn device(&self) -> RString {
        "cpu".into()
    }

    fn asset(&self, _name: RStr<'_>) -> RawResult<RString> {
        unavailable("asset")
    }

    fn head(&self) -> RawResult<Head> {
        let set = &self.0;
        RResult::ROk(Head {
            weight: set.weight.clone().into(),
            bias: set.bias.clone().into(),
            n_classes: set.n_classes,
            n_features: set.n_features,
        })
    }

    fn images(&self, _split: SplitId, _first: usize, _out: RSliceMut<'_, f32>) -> RawResult<()> {
        unavailable("images")
    }

    fn image_shape(&self) -> RawResult<RVec<usize>> {
        unavailable("image_shape")
    }

    fn forward(&self, _images: TensorView<'_>) -> RawResult<ForwardOutputs> {
        unavailable("forward")
    }

    fn vjp(
        &self,
        _images: TensorView<'_>,
        _at: RStr<'_>,
        _cotangent: TensorView<'_>,
    ) -> RawResult<RVec<f32>> {
        unavailable("vjp")
    }

    fn layer_names(&self) -> RawResult<RVec<RString>> {
        unavailable("layer_names")
    }

    fn layers(
        &self,
        _images: TensorView<'_>,
        _names: RVec<RString>,
    ) -> RawResult<RVec<NamedTensor>> {
        unavailable("layers")
    }

    fn extension(&self, id: RStr<'_>, _input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        let message = format!("unknown extension `{id}`");
        RResult::RErr(RawError::new(ErrorCode::UNSUPPORTED, message))
    }
}
