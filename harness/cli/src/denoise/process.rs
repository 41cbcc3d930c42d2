//! What `save` and `strip` have in common: from what was typed to the networks and the process.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::Args;
use oodbench_datasets::{Benchmark, DataDir, Located, Pack, PrepareRequest, Role, locate, prepare};
use oodbench_diffusion::batch::{Batch, Evaluation};
use oodbench_diffusion::checkpoint::{LoadError, LoadedModel, On};
use oodbench_diffusion::denoise::{
    DenoiseError, Denoiser, Images, MOST_AT_ONCE, Outputs, Refusal, Scoring, network, predicted,
};
use oodbench_diffusion::sampler::{Indexing, Method};
use oodbench_engine::EngineError;
use oodbench_engine::asset;
use oodbench_engine::classifier::{ClassifierRef, device_kind};
use oodbench_engine::key::hash_file;
use oodbench_engine::text::chain;
use oodbench_nn::classifier::Classifier;
use oodbench_nn::device::{AUTO, choose, device};
use oodbench_nn::precision::Precision;
use serde_json::{Value, json};

use crate::device::chosen;
use crate::diffusion::{ANOTHER_NETWORK, at_once, indexing, positive, say_refused};
use crate::environment as env;
use crate::exit::{CELLS_FAILED, Failure, SETUP};
use crate::observer::{ProgressMode, Talk};

/// Options of the process.
#[derive(Debug, Args)]
pub(super) struct ProcessArgs {
    /// A benchmark by name, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "glyphs")]
    pub(super) benchmark: String,
    /// The folder with the images, for example OpenOOD's `data`.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Weights: FILE, ARCH:FILE, or a TOML file with arch, weights, mean and std
    /// [default: the benchmark's].
    #[arg(long, value_name = "FILE")]
    classifier: Option<String>,
    /// The diffusion network: safetensors of ours, or the reference's .ckpt
    /// [default: the benchmark's].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// `Model` and `Schedule` of weights that do not describe themselves: TOML, JSON, or the
    /// reference's YAML.
    #[arg(long, value_name = "FILE", requires = "weights")]
    config: Option<PathBuf>,
    /// The sampler: DDIM, PNDM2, PNDM4, NDM1, NDM4 or PF.
    #[arg(long, value_name = "NAME", default_value = "DDIM")]
    method: Method,
    /// Steps that the whole schedule would be sampled with.
    #[arg(long, value_name = "N", default_value = "50", value_parser = positive)]
    steps: usize,
    /// Which state of the sampler an image is in: `reference` as the authors have it, one step too
    /// early, or `aligned`.
    #[arg(long, value_name = "NAME", default_value = "reference", value_parser = indexing)]
    indexing: Indexing,
    /// How far images are diffused, ascending.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_values_t = [0, 120, 240, 360]
    )]
    pub(super) timesteps: Vec<usize>,
    /// Draws of noise for each image.
    #[arg(long, value_name = "N", default_value = "4", value_parser = at_once)]
    pub(super) repeats: usize,
    /// Weight of the classifier-free guidance; 0 for none.
    #[arg(long, value_name = "NUMBER", default_value = "2", allow_negative_numbers = true)]
    beta: f64,
    /// Images in one evaluation of the diffusion network, repeats and both branches of the
    /// guidance counted; or auto: on a GPU the largest power of two that fits and is of use.
    #[arg(long, value_name = "N|auto", default_value = "64")]
    batch_size: Batch,
    /// The seed of the noise, which belongs to the image.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Where to compute: cpu, cuda, cuda:N, or auto, the first GPU if one answers and the CPU
    /// otherwise [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// What the diffusion network computes in: f32, or on a GPU tf32 or bf16. The classifier is in
    /// f32, in tf32 if the network is.
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    /// The folder for prepared images [default: ~/.cache/oodbench].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How many threads to use [default: all].
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
}

impl ProcessArgs {
    /// Sets up threads and the talk; what is typed wrongly is refused before anything is read.
    pub(super) fn begin(&self) -> Result<Talk, Failure> {
        let timesteps = &self.timesteps;
        if timesteps.len() < 2 || timesteps.windows(2).any(|pair| pair[0] >= pair[1]) {
            let message = format!(
                "`--timesteps` expected at least two, each greater than the one before, got {timesteps:?}"
            );
            return Err(Failure::usage(message, None));
        }
        if !self.beta.is_finite() {
            let message = format!("`--beta` expected a finite number, got {}", self.beta);
            return Err(Failure::usage(message, None));
        }
        env::restart_for_networks();
        env::start_threads(self.threads.unwrap_or_else(env::threads))?;
        let talk = Talk::new(self.progress, false);
        let chosen = chosen(self.device.as_deref(), &talk)?;
        let device = device(&chosen.name).map_err(EngineError::from)?;
        crate::device::check(self.precision, &device)?;
        Ok(talk)
    }

    fn cache(&self) -> Result<PathBuf, Failure> {
        env::cache(self.cache.as_deref())
    }
}

/// A benchmark with its sets and its classifier.
pub(super) struct Scene<'a> {
    args: &'a ProcessArgs,
    pub(super) benchmark: Benchmark,
    base: PathBuf,
    cache: PathBuf,
    /// The device's name.
    on: String,
    device: Device,
    classifier_hash: String,
    classifier: Classifier,
}

impl<'a> Scene<'a> {
    pub(super) fn open(args: &'a ProcessArgs) -> Result<Self, Failure> {
        let (benchmark, base) = env::benchmark(&args.benchmark)?;
        let cache = args.cache()?;
        let typed = args.classifier.as_deref();
        let found = ClassifierRef::resolve(typed, &benchmark, &base, &cache)?;
        // As `begin` has said.
        let on = choose(args.device.as_deref().unwrap_or(AUTO)).map_err(EngineError::from)?.name;
        let device = device(&on).map_err(EngineError::from)?;
        // No half precision for the classifier; whether products are in TF32 is one switch for both.
        let of_classifier = match args.precision {
            Precision::Tf32 => Precision::Tf32,
            Precision::F32 | Precision::Bf16 => Precision::F32,
        };
        let classifier = found.load(&on, of_classifier)?;
        let classifier_hash = found.key(&on, of_classifier);
        Ok(Self { args, benchmark, base, cache, on, device, classifier_hash, classifier })
    }

    /// The sets of the benchmark, opened, whether or not their images are there.
    pub(super) fn sets(&self) -> Vec<Located> {
        locate(&self.benchmark, &DataDir::new(&self.args.data, self.cache.join("scratch")))
    }

    /// A set, decoded.
    pub(super) fn prepare(
        &self,
        set: Located,
        limit: Option<usize>,
        talk: &Talk,
    ) -> Result<Pack, Failure> {
        let name = format!("{}-{}-{}", self.benchmark.name, set.set.role, set.set.name);
        let source = set.source?;
        let request = PrepareRequest {
            name: &name,
            preprocess: set.preprocess,
            limit,
            cache_dir: &self.cache.join("packs"),
            progress: talk,
        };
        Ok(prepare(source.as_ref(), &request)?)
    }

    /// The side of the ID test images, where they are square.
    pub(super) fn side(&self, talk: &Talk) -> Result<Option<u32>, Failure> {
        let Some(set) = self.sets().into_iter().find(|set| set.set.role == Role::IdTest) else {
            return Ok(None);
        };
        let pack = self.prepare(set, Some(1), talk)?;
        Ok((pack.width() == pack.height()).then(|| pack.width()))
    }

    /// The process on images of a size, with its diffusion network.
    pub(super) fn process(self, size: (usize, usize), talk: &Talk) -> Result<Process<'a>, Failure> {
        let (args, setup) = (self.args, |message: String| {
            let (message, hint) = match message.split_once("\n\nhint: ") {
                Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
                None => (message, None),
            };
            Failure { message, hint, code: SETUP }
        });
        let (weights, weights_hash) = match (&args.weights, self.benchmark.assets.get("diffusion"))
        {
            (Some(path), _) => {
                let read = |error| setup(format!("read `{}`: {error}", path.display()));
                (path.clone(), hash_file(path).map_err(read)?)
            }
            (None, Some(place)) => {
                let found = asset::resolve(place, &self.base, &self.cache)?;
                (found.path, found.blake3)
            }
            (None, None) => {
                let message =
                    format!("benchmark `{}` has no diffusion network", self.benchmark.name);
                let hint = "`--weights FILE`, where FILE was trained on the ID images";
                return Err(Failure { message, hint: Some(hint.to_owned()), code: SETUP });
            }
        };
        let config = args.config.as_deref();
        let config_hash = config.map(hash_file).transpose();
        let config_hash = config_hash.map_err(|error| {
            setup(format!("read `{}`: {error}", config.unwrap_or(Path::new("")).display()))
        })?;
        let n_classes = self.classifier.n_classes();
        let on = On { device: &self.device, precision: args.precision, replay: true };
        let loaded = network::load(&weights, config, size, n_classes, on).map_err(|error| {
            let mut failure = setup(chain(&error));
            let is_other = matches!(error, network::NetworkError::Load(LoadError::Network { .. }));
            if config.is_some() && is_other {
                failure.hint = Some(ANOTHER_NETWORK.to_owned());
            }
            failure
        })?;
        let steps = loaded.schedule.steps();
        let farthest = args.timesteps.last().copied().unwrap_or(0);
        if farthest >= steps || args.steps > steps {
            let message = format!(
                "diffusion network `{}` expected timesteps below {steps} and at most {steps} steps, got {farthest} and {}",
                weights.display(),
                args.steps
            );
            return Err(Failure::usage(message, None));
        }
        let trained_on = loaded.net.image_size();
        if trained_on != size.0 {
            talk.line(&format!(
                "warning: the diffusion network was trained on images of {trained_on}x{trained_on} and is used on {}x{}",
                size.0, size.1
            ));
        }
        let evaluation = Evaluation {
            model: loaded.model.as_ref(),
            beta: args.beta,
            size,
            device: &self.device,
        };
        let batch = match args.batch_size {
            Batch::Of(batch) => batch,
            Batch::Auto => {
                let found = evaluation
                    .largest(MOST_AT_ONCE)
                    .map_err(|error| setup(format!("find a batch: {}", chain(&error))))?;
                talk.note(&found.line());
                found.batch
            }
        };
        let mut settings = json!({
            "classifier": self.classifier_hash,
            "weights": weights_hash,
            "config": config_hash,
            "method": args.method,
            "steps": args.steps,
            "indexing": args.indexing,
            "timesteps": args.timesteps,
            "repeats": args.repeats,
            "beta": args.beta,
            "seed": args.seed,
            "device": device_kind(&self.on),
        });
        // Absent where it is what it was before there was a choice.
        if args.precision != Precision::F32 {
            settings["precision"] = args.precision.name().into();
        }
        let classifier = Clean { classifier: self.classifier, size };
        Ok(Process { args, loaded, classifier, device: self.device, batch, settings })
    }
}

/// What denoising says, behind `what`.
pub(super) fn refused(what: &str, error: &DenoiseError) -> Failure {
    let message = format!("{what}: {}", chain(error));
    match error {
        DenoiseError::OutOfMemory { fits, .. } => Failure::out_of_memory(message, *fits),
        _ => Failure { message, hint: None, code: CELLS_FAILED },
    }
}

/// The classifier on images of one size.
struct Clean {
    classifier: Classifier,
    size: (usize, usize),
}

/// Everything that denoising takes.
pub(super) struct Process<'a> {
    args: &'a ProcessArgs,
    loaded: LoadedModel,
    classifier: Clean,
    device: Device,
    /// Images in one evaluation of the diffusion network.
    batch: usize,
    /// All that decides the result, the images aside.
    settings: Value,
}

impl Process<'_> {
    pub(super) fn settings(&self) -> &Value {
        &self.settings
    }

    /// Says so where the network was not replayed, once it has been used.
    pub(super) fn say_refused(&self, talk: &Talk) {
        say_refused(&self.loaded, talk);
    }

    pub(super) fn seed(&self) -> u64 {
        self.args.seed
    }

    pub(super) fn size(&self) -> (usize, usize) {
        self.classifier.size
    }

    pub(super) fn scoring(&self) -> Scoring<'_> {
        Scoring {
            denoiser: Denoiser {
                model: self.loaded.model.as_ref(),
                schedule: &self.loaded.schedule,
                method: self.args.method,
                steps: self.args.steps,
                indexing: self.args.indexing,
                beta: self.args.beta,
                batch: self.batch,
                device: &self.device,
            },
            timesteps: &self.args.timesteps,
            repeats: self.args.repeats,
        }
    }

    pub(super) fn classify(&self, images: Images<'_>) -> Result<Outputs, Refusal> {
        let outputs = self.classifier.classifier.forward(images.values(), images.size())?;
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        Ok(Outputs { features: values(&outputs.features)?, logits: values(&outputs.logits)? })
    }

    /// The class of each image that guides the process.
    pub(super) fn classes(&self, images: Images<'_>) -> Result<Vec<u32>, Failure> {
        let outputs = self.classify(images).map_err(|error| Failure {
            message: format!("run the classifier: {error}"),
            hint: None,
            code: SETUP,
        })?;
        let n_classes = self.classifier.classifier.n_classes();
        Ok(outputs.logits.chunks_exact(n_classes).map(predicted).collect())
    }
}
