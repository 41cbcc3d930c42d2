//! The tasks.

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use oodbench_diffusion::checkpoint::On;
use oodbench_diffusion::denoise::{
    Change, Denoiser, Images, Mode as Comparison, Outputs, Readout, Refusal, Scoring, Space,
    predicted,
};
use oodbench_diffusion::net::{DdimConfig, EpsModel, NetConfig, Pass};
use oodbench_diffusion::replay::Refused;
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::arch::{Architecture, Network, Taps};
use oodbench_nn::device::set_precision;
use oodbench_nn::examples::generator;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_nn::optim::Rule;
use oodbench_nn::train::{Alone, Learner};
use oodbench_nn::variables::Variables;

use crate::floors::{Floors, floors};
use crate::options::Options;

const CONFIG: &str = r#"{
    "struc": "DDIM", "type": "simple", "image_size": 32, "num_classes": 10, "in_channels": 3,
    "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2,
    "attn_resolutions": [16], "dropout": 0.1, "resamp_with_conv": true
}"#;

/// Gradients that are compared: the first layer, one in the middle, one late, and a bias.
const COMPARED: [&str; 4] =
    ["conv_in.weight", "mid.block_1.conv1.weight", "up.0.block.0.conv2.weight", "conv_out.bias"];

const EMA_RATE: f64 = 0.9999;

/// Seconds, and the results, each flattened.
type Timed = (f64, Vec<Vec<f32>>);

pub(crate) struct Bench {
    options: Options,
    config: DdimConfig,
    variables: Variables,
    /// On constants, for sampling.
    model: Box<dyn EpsModel>,
    refused: Refused,
    /// On variables, for gradients.
    trained: Box<dyn EpsModel>,
    /// The same without dropout, so that its gradient can be compared.
    exact: Box<dyn EpsModel>,
    classifier: Box<dyn Network>,
    learner: Learner,
    steps: u64,
}

impl Bench {
    pub(crate) fn new(options: Options) -> std::result::Result<Self, Box<dyn Error>> {
        let device = &options.device;
        set_precision(options.precision, device)?;
        let config = |dropout| config(options.channels, options.side, dropout);
        let (config, exact) = (config(0.1)?, config(0.0)?);
        let build = |config: &DdimConfig, vb| {
            NetConfig::Ddim(config.clone()).build_in(vb, options.precision)
        };
        let variables = Variables::new(0, device);
        let trained = build(&config, variables.builder())?;
        let exact = build(&exact, variables.builder())?;
        set_by_formula(&variables)?;
        let constants: HashMap<String, Tensor> = variables.snapshot()?.into_iter().collect();
        let on = On { device, precision: options.precision, replay: options.graphs };
        let constants = VarBuilder::from_tensors(constants, DType::F32, device);
        let (model, refused) = on.build(&NetConfig::Ddim(config.clone()), constants)?;
        let of_classifier = Variables::new(0, device);
        let architecture = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
        architecture.build(10, of_classifier.builder())?;
        set_by_formula(&of_classifier)?;
        let constants: HashMap<String, Tensor> = of_classifier.snapshot()?.into_iter().collect();
        let classifier =
            architecture.build(10, VarBuilder::from_tensors(constants, DType::F32, device))?;
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, 0.0);
        let rule = Rule::AdamW { beta1, beta2, eps, weight_decay, amsgrad: false };
        let learner = Learner::new(variables.clone(), rule, Some(EMA_RATE))?;
        let bench = Self {
            model,
            refused,
            trained,
            exact,
            classifier,
            learner,
            variables,
            config,
            steps: 0,
            options,
        };
        bench.check_floors()?;
        Ok(bench)
    }

    /// The walk that counts operations has met every layer if it has met every parameter.
    fn check_floors(&self) -> std::result::Result<(), Box<dyn Error>> {
        let counted = self.floors(1)?.parameters;
        let there: usize = self.variables.all().iter().map(|(_, var)| var.elem_count()).sum();
        if counted != there as u64 {
            return Err(format!("parameters of the U-Net expected {there}, got {counted}").into());
        }
        Ok(())
    }

    pub(crate) fn floors(&self, n: usize) -> Result<Floors> {
        let size = self.options.precision.dtype().size_in_bytes() as u64;
        Ok(floors(&self.config, n, size))
    }

    /// Whether evaluations are replayed as CUDA graphs, as far as that is known by now.
    pub(crate) fn graphs(&self) -> String {
        match (self.options.graphs && self.options.device.is_cuda(), self.refused.reason()) {
            (false, _) => "off".to_owned(),
            (true, None) => "on".to_owned(),
            (true, Some(reason)) => format!("refused: {reason}"),
        }
    }

    pub(crate) fn run(
        &mut self,
        task: &str,
        n: usize,
    ) -> std::result::Result<Timed, Box<dyn Error>> {
        match task {
            "forward" => Ok(self.forward(n)?),
            "backward" => Ok(self.backward(n)?),
            "step" => self.step(n),
            "diffood" => self.diffood(n),
            "classify" => Ok(self.classify_task(n)?),
            other => Err(format!("unknown task `{other}`").into()),
        }
    }

    /// What `work` takes, from an idle device until it is idle again.
    fn timed<T, E>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(f64, T), E>
    where
        E: From<candle_core::Error>,
    {
        let device = self.options.device.clone();
        device.synchronize()?;
        let start = Instant::now();
        let found = work()?;
        device.synchronize()?;
        Ok((start.elapsed().as_secs_f64(), found))
    }

    fn forward(&self, n: usize) -> Result<Timed> {
        let (x, t, y) = self.inputs(n)?;
        let (seconds, eps) = self.timed(|| self.model.eps(&x, &t, Some(&y), Pass::Sample))?;
        Ok((seconds, vec![values(&eps)?]))
    }

    fn backward(&self, n: usize) -> Result<Timed> {
        let (x, t, y) = self.inputs(n)?;
        let (seconds, grads) = self.timed(|| {
            let eps = self.exact.eps(&x, &t, Some(&y), Pass::Sample)?;
            squared_loss(&eps, &x)?.backward()
        })?;
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
    fn step(&mut self, n: usize) -> std::result::Result<Timed, Box<dyn Error>> {
        let (x, t, y) = self.inputs(n)?;
        self.options.device.synchronize()?;
        let start = Instant::now();
        let mut dropout = generator(0, "dropout", self.steps);
        let eps = self.trained.eps(&x, &t, Some(&y), Pass::Train(&mut dropout))?;
        let loss = squared_loss(&eps, &x)?;
        self.learner.backward(&loss, 1, Some(1.0), &mut Alone)?;
        self.learner.update(2e-4)?;
        self.options.device.synchronize()?;
        self.steps += 1;
        Ok((start.elapsed().as_secs_f64(), Vec::new()))
    }

    /// The change of the classifier's features between timesteps 0 and 360, by DDIM with guidance,
    /// as the detector computes it: images come from the host and scores go there.
    fn diffood(&self, n: usize) -> std::result::Result<Timed, Box<dyn Error>> {
        let Options { steps, repeats, side, .. } = self.options;
        let image_len = 3 * side * side;
        let pixels = formula::uniform("images", n * image_len, 0.0, 1.0);
        let noises = formula::normal("noise", n * repeats * image_len);
        let images = Images::new(&pixels, (side, side))?;
        let schedule = Schedule::new(&ScheduleConfig::default());
        let scoring = Scoring {
            denoiser: Denoiser {
                model: self.model.as_ref(),
                schedule: &schedule,
                method: Method::Ddim,
                steps,
                indexing: Indexing::Reference,
                beta: 2.0,
                batch: self.options.batch.unwrap_or(2 * n * repeats),
                device: &self.options.device,
            },
            timesteps: &[0, 360],
            repeats,
        };
        let noise = |image: usize, repeat: usize, len: usize| {
            noises[(image * repeats + repeat) * len..][..len].to_vec()
        };
        let change = Change { mode: Comparison::Global, nth: 1 };
        let readouts = [Readout { space: Space::Feature, change }];
        let classify = |images: Images<'_>| -> std::result::Result<Outputs, Refusal> {
            let outputs = self.classify(images.values())?;
            Ok(Outputs { features: values(&outputs.features)?, logits: values(&outputs.logits)? })
        };
        let (seconds, scores) = self.timed(|| -> std::result::Result<_, Box<dyn Error>> {
            let logits: Vec<Vec<f32>> = self.classify(&pixels)?.logits.to_vec2()?;
            let classes: Vec<u32> = logits.iter().map(|row| predicted(row)).collect();
            let scores =
                scoring.scores(images, &classes, &noise, &readouts, &classify, &mut || Ok(()))?;
            Ok(scores)
        })?;
        Ok((seconds, vec![scores]))
    }

    fn classify_task(&self, n: usize) -> Result<Timed> {
        let side = self.options.side;
        let pixels = formula::uniform("images", n * 3 * side * side, 0.0, 1.0);
        let (seconds, logits) =
            self.timed(|| Ok::<_, candle_core::Error>(self.classify(&pixels)?.logits))?;
        Ok((seconds, vec![values(&logits)?]))
    }

    /// ResNet-18 on images of the host, normalised.
    fn classify(&self, pixels: &[f32]) -> Result<oodbench_nn::arch::Outputs> {
        let Options { device, side, .. } = &self.options;
        let n = pixels.len() / (3 * side * side);
        let images = Tensor::from_slice(pixels, (n, 3, *side, *side), device)?;
        let channel = |values: [f32; 3]| Tensor::new(&values, device)?.reshape((1, 3, 1, 1));
        let xs = images
            .broadcast_sub(&channel([0.4914, 0.4822, 0.4465])?)?
            .broadcast_div(&channel([0.2470, 0.2435, 0.2616])?)?;
        self.classifier.forward(&xs, Mode::Eval, &mut Taps::none())
    }

    fn inputs(&self, n: usize) -> Result<(Tensor, Tensor, Tensor)> {
        let Options { device, side, .. } = &self.options;
        let x = formula::normal("x", n * 3 * side * side);
        let x = Tensor::from_vec(x, (n, 3, *side, *side), device)?;
        let t: Vec<f32> = (0..n).map(|i| (i * 997 % 1000) as f32).collect();
        let y: Vec<u32> = (0..n).map(|i| (i % 11) as u32).collect();
        Ok((x, Tensor::new(t, device)?, Tensor::new(y, device)?))
    }
}

/// The network, with so many channels in its first level and images of so many pixels a side.
pub(crate) fn config(ch: usize, image_size: usize, dropout: f64) -> Result<DdimConfig> {
    let config: NetConfig = serde_json::from_str(CONFIG).map_err(candle_core::Error::wrap)?;
    let NetConfig::Ddim(config) = config else { candle_core::bail!("expected the DDIM U-Net") };
    Ok(DdimConfig { ch, image_size, dropout, ..config })
}

/// Gives every variable the weight that follows from its name.
fn set_by_formula(variables: &Variables) -> Result<()> {
    for (name, var) in variables.all() {
        let weight = formula::weight(&name, var.dims());
        var.set(&Tensor::from_vec(weight, var.dims(), &Device::Cpu)?.to_device(var.device())?)?;
    }
    Ok(())
}

fn squared_loss(eps: &Tensor, noise: &Tensor) -> Result<Tensor> {
    (eps - noise)?.sqr()?.flatten_from(1)?.sum(1)?.mean(0)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
