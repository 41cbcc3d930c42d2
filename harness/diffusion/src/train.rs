//! Training a noise-prediction network by the recipe of the reference: steps drawn in symmetric
//! pairs, the class dropped now and then, summed squared loss, warm-up, gradient clipping, and
//! an exponential moving average of the weights.
//!
//! Every random number is a function of the seed and the step, so that training which was
//! stopped goes on from its last checkpoint as if it had not been.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};
use oodbench_nn::examples::{Augmentation, Examples, batch, epoch_order, generator};
use oodbench_nn::optim::{Optimiser, Rule};
use oodbench_nn::variables::Variables;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::net::{EpsModel, NetConfig, Pass};
use crate::schedule::{Schedule, ScheduleConfig};

/// How a diffusion network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    pub steps: u64,
    pub batch_size: usize,
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup: u64,
    /// Steps at the end over which it falls to 0 along half a cosine; 0 keeps it.
    pub cooldown: u64,
    pub rule: Rule,
    /// The norm that a gradient is scaled down to.
    pub grad_clip: f64,
    /// The probability that a class is kept; otherwise it becomes "no class".
    pub cond_ratio: f64,
    /// The weight of the past in the moving average, at each step.
    pub ema_rate: f64,
    pub augmentation: Augmentation,
    pub seed: u64,
}

/// What is known after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Summed over an image's values, averaged over the batch.
    pub loss: f64,
    pub wall_s: f64,
}

/// Trains and returns the averaged weights as a state dict.
///
/// A checkpoint is written to `checkpoint` once a minute, and read from there at the start.
///
/// # Errors
/// A loss that is not finite, a checkpoint of another network, or what the network says.
pub fn train_diffusion(
    net: &NetConfig,
    schedule: &ScheduleConfig,
    examples: &dyn Examples,
    recipe: &DiffusionRecipe,
    checkpoint: Option<&Path>,
    device: &Device,
    mut on_step: impl FnMut(StepReport),
) -> Result<BTreeMap<String, Tensor>> {
    if examples.len() < recipe.batch_size || recipe.batch_size == 0 {
        candle_core::bail!(
            "training expected at least a batch of {} images, got {}",
            recipe.batch_size,
            examples.len()
        );
    }
    let mut state = State::new(net, recipe, device)?;
    if let Some(path) = checkpoint.filter(|path| path.exists()) {
        state.load(path, device)?;
    }
    let schedule = Schedule::new(schedule);
    let batches_an_epoch = (examples.len() / recipe.batch_size) as u64;
    let mut order = (u64::MAX, Vec::new());
    let mut saved = Instant::now();
    while state.step < recipe.steps {
        let start = Instant::now();
        let (epoch, nth) = (state.step / batches_an_epoch, state.step % batches_an_epoch);
        if order.0 != epoch {
            order = (epoch, epoch_order(examples.len(), recipe.seed, epoch));
        }
        let first = nth as usize * recipe.batch_size;
        let indices = &order.1[first..first + recipe.batch_size];
        let drawn = (recipe.seed, state.step);
        let (xs, ys) = batch(examples, indices, recipe.augmentation, drawn, device)?;
        let xs = ((xs * 2.0)? - 1.0)?;
        let loss = loss(state.model.as_ref(), &schedule, &xs, &ys, recipe, state.step)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            candle_core::bail!("loss at step {} expected a finite number, got {value}", state.step);
        }
        state.learn(&loss, recipe)?;
        on_step(StepReport {
            step: state.step,
            loss: value,
            wall_s: start.elapsed().as_secs_f64(),
        });
        if let Some(path) = checkpoint
            && saved.elapsed() > Duration::from_secs(60)
        {
            state.save(path)?;
            saved = Instant::now();
        }
    }
    if let Some(path) = checkpoint {
        state.save(path)?;
    }
    Ok(state.average)
}

/// The loss of one batch at its own random steps, classes and noise.
fn loss(
    model: &dyn EpsModel,
    schedule: &Schedule,
    xs: &Tensor,
    ys: &Tensor,
    recipe: &DiffusionRecipe,
    step: u64,
) -> Result<Tensor> {
    let mut rng = generator(recipe.seed, "noising", step);
    let batch = xs.dim(0)?;
    let t = symmetric_steps(batch, schedule.steps(), &mut rng);
    let noise: Vec<f32> = (0..xs.elem_count()).map(|_| StandardNormal.sample(&mut rng)).collect();
    let noise = Tensor::from_vec(noise, xs.shape(), xs.device())?;
    let y = if model.n_classes() > 0 {
        let no_class = model.n_classes() as u32;
        let ys = ys.to_vec1::<u32>()?;
        let kept = ys
            .into_iter()
            .map(|y| if rng.random::<f64>() < recipe.cond_ratio { y } else { no_class })
            .collect::<Vec<u32>>();
        Some(Tensor::from_vec(kept, batch, xs.device())?)
    } else {
        None
    };
    let x_t = schedule.diffuse(xs, &t, &noise)?;
    let t: Vec<f32> = t.iter().map(|&t| t as f32).collect();
    let t = Tensor::from_vec(t, batch, xs.device())?;
    let mut dropout = generator(recipe.seed, "dropout", step);
    let eps = model.eps(&x_t, &t, y.as_ref(), Pass::Train(&mut dropout))?;
    (eps - noise)?.sqr()?.flatten_from(1)?.sum(1)?.mean(0)
}

/// Half of the steps at random, the other half their mirror images: `t` and `steps - 1 - t`.
fn symmetric_steps(n: usize, steps: usize, rng: &mut impl Rng) -> Vec<usize> {
    let half: Vec<usize> = (0..n.div_ceil(2)).map(|_| rng.random_range(0..steps)).collect();
    half.iter().copied().chain(half.iter().map(|t| steps - 1 - t)).take(n).collect()
}

/// Everything that a checkpoint holds.
struct State {
    variables: Variables,
    model: Box<dyn EpsModel>,
    optimiser: Optimiser,
    average: BTreeMap<String, Tensor>,
    step: u64,
}

impl State {
    fn new(net: &NetConfig, recipe: &DiffusionRecipe, device: &Device) -> Result<Self> {
        let variables = Variables::new(recipe.seed, device);
        let model = net.build(variables.builder())?;
        let optimiser = Optimiser::new(recipe.rule, variables.trainable());
        let average = variables.snapshot()?;
        Ok(Self { variables, model, optimiser, average, step: 0 })
    }

    fn learn(&mut self, loss: &Tensor, recipe: &DiffusionRecipe) -> Result<()> {
        let grads = loss.backward()?;
        let norm = self.optimiser.gradient_norm(&grads)?;
        let scale = if norm > recipe.grad_clip { recipe.grad_clip / norm } else { 1.0 };
        self.optimiser.step(&grads, recipe.rate(self.step), scale)?;
        self.step += 1;
        for (name, var) in self.variables.all() {
            let new = (var.as_detached_tensor() * (1.0 - recipe.ema_rate))?;
            let old = (&self.average[&name] * recipe.ema_rate)?;
            self.average.insert(name, (old + new)?);
        }
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let parts = [
            ("model", self.variables.snapshot()?),
            ("optimiser", self.optimiser.state()),
            ("average", self.average.clone()),
        ];
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (part, values) in parts {
            tensors.extend(values.into_iter().map(|(name, t)| (format!("{part}.{name}"), t)));
        }
        tensors.push(("step".to_owned(), Tensor::new(&[self.step as i64], &Device::Cpu)?));
        write_atomically(path, &tensors)
    }

    fn load(&mut self, path: &Path, device: &Device) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, device)?;
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let of_part = |(key, t): (&String, &Tensor)| {
                Some((key.strip_prefix(prefix)?.to_owned(), t.clone()))
            };
            tensors.iter().filter_map(of_part).collect()
        };
        let Some(step) = tensors.get("step") else {
            candle_core::bail!("`{}` expected a `step`, got none", path.display());
        };
        self.step = step.to_vec1::<i64>()?[0] as u64;
        self.variables.restore(&part("model."))?;
        self.optimiser.restore(&part("optimiser."), self.step);
        let average = part("average.");
        for (name, value) in &mut self.average {
            match average.get(name) {
                Some(saved) => *value = saved.clone(),
                None => candle_core::bail!("`{}` has no average of `{name}`", path.display()),
            }
        }
        Ok(())
    }
}

fn write_atomically(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let mut temporary = PathBuf::from(path).into_os_string();
    temporary.push(".tmp");
    let tensors: std::collections::HashMap<&str, Tensor> =
        tensors.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
    candle_core::safetensors::save(&tensors, &temporary)?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

impl DiffusionRecipe {
    fn rate(&self, step: u64) -> f64 {
        let rise = (step as f64 / self.warmup.max(1) as f64).min(1.0);
        let left = self.steps.saturating_sub(step) as f64;
        let fall = if self.cooldown == 0 { 1.0 } else { (left / self.cooldown as f64).min(1.0) };
        self.learning_rate * rise * 0.5 * (1.0 - (std::f64::consts::PI * fall).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> DiffusionRecipe {
        DiffusionRecipe {
            steps: 4,
            batch_size: 4,
            learning_rate: 1e-3,
            warmup: 2,
            cooldown: 0,
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            grad_clip: 1.0,
            cond_ratio: 0.9,
            ema_rate: 0.9,
            augmentation: Augmentation { crop_padding: 0, horizontal_flip: true },
            seed: 3,
        }
    }

    fn net() -> NetConfig {
        serde_json::from_value(serde_json::json!({
            "struc": "DDIM", "image_size": 8, "num_classes": 2, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "dropout": 0.1, "resamp_with_conv": true,
        }))
        .unwrap()
    }

    struct Checks(Vec<u8>);

    impl Examples for Checks {
        fn len(&self) -> usize {
            10
        }
        fn size(&self) -> (usize, usize) {
            (8, 8)
        }
        fn pixels(&self, index: usize) -> &[u8] {
            &self.0[index..index + 8 * 8 * 3]
        }
        fn label(&self, index: usize) -> u32 {
            index as u32 % 2
        }
    }

    fn train(steps: u64, checkpoint: Option<&Path>) -> Vec<f32> {
        let examples = Checks((0..8 * 8 * 3 + 10).map(|i| (i * 37 % 256) as u8).collect());
        let recipe = DiffusionRecipe { steps, ..recipe() };
        let schedule = ScheduleConfig::default();
        let device = Device::Cpu;
        let weights =
            train_diffusion(&net(), &schedule, &examples, &recipe, checkpoint, &device, |_| ());
        let weights = weights.unwrap();
        weights.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    #[test]
    fn training_that_was_stopped_ends_with_the_same_weights() {
        let folder = std::env::temp_dir().join(format!("oodbench-train-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.safetensors");
        let whole = train(4, None);
        train(2, Some(&path));
        let resumed = train(4, Some(&path));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(whole, resumed);
        assert_ne!(whole, train(2, None));
    }

    #[test]
    fn steps_come_in_mirrored_pairs() {
        let t = symmetric_steps(5, 1000, &mut generator(0, "test", 0));
        assert_eq!(t.len(), 5);
        assert_eq!((t[0] + t[3], t[1] + t[4]), (999, 999));
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let recipe = DiffusionRecipe { steps: 100, warmup: 10, cooldown: 20, ..recipe() };
        assert_eq!(recipe.rate(0), 0.0);
        assert_eq!(recipe.rate(50), 1e-3);
        assert!(recipe.rate(95) < 2e-4);
    }
}
