//! Our side of `cargo xtask speed`: the CIFAR-10 network of DDIM on formula weights, one task a
//! line on standard input, the seconds that it took on standard output.
//!
//! The other side is `xtask/python/speed.py`, which does the same tasks in PyTorch. A task's
//! results go to files of raw `f32`, so that both can be compared.
//!
//! A line is a task (`forward`, `backward`, `step` or `diffood`), the number of images, and a path
//! whose ending is replaced by the number of each result, with tabs between them.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use oodbench_diffusion::guidance::Guided;
use oodbench_diffusion::net::{EpsModel, NetConfig, Pass};
use oodbench_diffusion::sampler::{Method, Sampler};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::arch::{Architecture, Network, Taps};
use oodbench_nn::examples::generator;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_nn::optim::Rule;
use oodbench_nn::train::{Alone, Learner};
use oodbench_nn::variables::Variables;

const CONFIG: &str = r#"{
    "struc": "DDIM", "type": "simple", "image_size": 32, "num_classes": 10, "in_channels": 3,
    "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2,
    "attn_resolutions": [16], "dropout": 0.1, "resamp_with_conv": true
}"#;

/// Gradients that are compared: the first layer, one in the middle, one late, and a bias.
const COMPARED: [&str; 4] =
    ["conv_in.weight", "mid.block_1.conv1.weight", "up.0.block.0.conv2.weight", "conv_out.bias"];

const EMA_RATE: f64 = 0.9999;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut bench = Bench::new()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split('\t').collect();
        let [task, n, file] = words[..] else {
            return Err(format!("expected a task, a number and a path, got `{line}`").into());
        };
        let (seconds, results) = bench.run(task, n.parse()?)?;
        for (index, result) in results.iter().enumerate() {
            let bytes: Vec<u8> = result.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(Path::new(file).with_extension(index.to_string()), bytes)?;
        }
        writeln!(std::io::stdout(), "{seconds}")?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Bench {
    config: NetConfig,
    variables: Variables,
    /// On constants, for sampling.
    model: Box<dyn EpsModel>,
    /// On variables, for gradients.
    trained: Box<dyn EpsModel>,
    /// The same without dropout, so that its gradient can be compared.
    exact: Box<dyn EpsModel>,
    classifier: Box<dyn Network>,
    learner: Learner,
    steps: u64,
}

impl Bench {
    fn new() -> Result<Self> {
        let config = config(0.1)?;
        let variables = Variables::new(0, &Device::Cpu);
        let trained = config.build(variables.builder())?;
        let exact = self::config(0.0)?.build(variables.builder())?;
        let by_formula = |name: &str, shape: &[usize]| {
            Tensor::from_vec(formula::weight(name, shape), shape, &Device::Cpu)
        };
        for (name, var) in variables.all() {
            var.set(&by_formula(&name, var.dims())?)?;
        }
        let weights = formula::var_builder(Default::default());
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, 0.0);
        let rule = Rule::AdamW { beta1, beta2, eps, weight_decay, amsgrad: false };
        Ok(Self {
            model: config.build(weights.clone())?,
            trained,
            exact,
            classifier: Architecture::ResNet32 { blocks: [2, 2, 2, 2] }.build(10, weights)?,
            learner: Learner::new(variables.clone(), rule, Some(EMA_RATE))
                .map_err(candle_core::Error::wrap)?,
            variables,
            config,
            steps: 0,
        })
    }

    fn run(&mut self, task: &str, n: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        match task {
            "forward" => self.forward(n),
            "backward" => self.backward(n),
            "step" => self.step(n),
            "diffood" => self.diffood(n),
            other => candle_core::bail!("unknown task `{other}`"),
        }
    }

    fn forward(&self, n: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        let (x, t, y) = self.inputs(n)?;
        let start = Instant::now();
        let eps = self.model.eps(&x, &t, Some(&y), Pass::Sample)?;
        Ok((start.elapsed().as_secs_f64(), vec![values(&eps)?]))
    }

    fn backward(&self, n: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        let (x, t, y) = self.inputs(n)?;
        let start = Instant::now();
        let eps = self.exact.eps(&x, &t, Some(&y), Pass::Sample)?;
        let grads = squared_loss(&eps, &x)?.backward()?;
        let seconds = start.elapsed().as_secs_f64();
        let mut result = Vec::new();
        for (name, var) in self.variables.all() {
            if COMPARED.contains(&name.as_str()) {
                let Some(grad) = grads.get(&var) else {
                    candle_core::bail!("no gradient of `{name}`")
                };
                result.push(values(grad)?);
            }
        }
        Ok((seconds, result))
    }

    /// A training step with dropout, whose masks differ between the two sides: there is nothing to
    /// compare.
    fn step(&mut self, n: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        let (x, t, y) = self.inputs(n)?;
        let start = Instant::now();
        let mut dropout = generator(0, "dropout", self.steps);
        let eps = self.trained.eps(&x, &t, Some(&y), Pass::Train(&mut dropout))?;
        let loss = squared_loss(&eps, &x)?;
        loss.to_scalar::<f32>()?;
        let mut step = || {
            self.learner.backward(&loss, Some(1.0), &mut Alone)?;
            self.learner.update(2e-4)
        };
        step().map_err(candle_core::Error::wrap)?;
        self.steps += 1;
        Ok((start.elapsed().as_secs_f64(), Vec::new()))
    }

    /// Images to timesteps 0 and 360 and back, by DDIM in 10 steps with guidance; the change of
    /// the classifier's features between the two, as DiffOOD scores it.
    fn diffood(&self, n: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        let shape = (n, 3, 32, 32);
        let images = formula::uniform("images", n * 3 * 32 * 32, 0.0, 1.0);
        let images = Tensor::from_vec(images, shape, &Device::Cpu)?;
        let noise =
            Tensor::from_vec(formula::normal("noise", n * 3 * 32 * 32), shape, &Device::Cpu)?;
        let schedule = Schedule::new(&ScheduleConfig::default());
        let sampler = Sampler::new(&schedule, Method::Ddim, 10);
        let start = Instant::now();
        let classes = self.classify(&images)?.logits.argmax(1)?;
        let guided = Guided { model: self.model.as_ref(), classes: Some(classes), beta: 2.0 };
        let xs = ((&images * 2.0)? - 1.0)?;
        let mut features = Vec::new();
        for t in [0, 360] {
            let x_t = schedule.diffuse(&xs, &vec![t; n], &noise)?;
            let x = sampler.run(&x_t, t as i64 - 1, -1, |x, t| guided.eps(x, t))?;
            let x = ((x * 0.5)? + 0.5)?.clamp(0f32, 1f32)?;
            let of_classifier = self.classify(&x)?.features;
            let length = (of_classifier.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-10)?;
            features.push(of_classifier.broadcast_div(&length)?);
        }
        let scores = (&features[1] - &features[0])?.abs()?.sum(1)?;
        Ok((start.elapsed().as_secs_f64(), vec![values(&scores)?]))
    }

    fn classify(&self, images: &Tensor) -> Result<oodbench_nn::arch::Outputs> {
        let channel = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 1, 1));
        let xs = images
            .broadcast_sub(&channel([0.4914, 0.4822, 0.4465])?)?
            .broadcast_div(&channel([0.2470, 0.2435, 0.2616])?)?;
        self.classifier.forward(&xs, Mode::Eval, &mut Taps::none())
    }

    fn inputs(&self, n: usize) -> Result<(Tensor, Tensor, Tensor)> {
        let side = self.config.image_size();
        let x = formula::normal("x", n * 3 * side * side);
        let x = Tensor::from_vec(x, (n, 3, side, side), &Device::Cpu)?;
        let t: Vec<f32> = (0..n).map(|i| (i * 997 % 1000) as f32).collect();
        let y: Vec<u32> = (0..n).map(|i| (i % 11) as u32).collect();
        Ok((x, Tensor::new(t, &Device::Cpu)?, Tensor::new(y, &Device::Cpu)?))
    }
}

fn config(dropout: f64) -> Result<NetConfig> {
    let config: NetConfig = serde_json::from_str(CONFIG).map_err(candle_core::Error::wrap)?;
    let NetConfig::Ddim(config) = config else { candle_core::bail!("expected the DDIM U-Net") };
    Ok(NetConfig::Ddim(oodbench_diffusion::net::DdimConfig { dropout, ..config }))
}

fn squared_loss(eps: &Tensor, noise: &Tensor) -> Result<Tensor> {
    (eps - noise)?.sqr()?.flatten_from(1)?.sum(1)?.mean(0)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
