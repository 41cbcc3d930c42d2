//! `oodbench bench`: from what was typed to a leaderboard.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use oodbench_engine::bench::{
    BatchSize, BenchRequest, ImageSource, Isolation, Setting, Source, bench, outline,
};
use oodbench_engine::catalogue::catalogue;
use oodbench_engine::pack::Catalogue;
use oodbench_nn::device::Chosen;
use oodbench_nn::precision::Precision;

use crate::config::ConfigFile;
use crate::device::chosen;
use crate::environment as env;
use crate::exit::{DONE, Failure, print};
use crate::observer::{ProgressMode, Talk};
use crate::outline::describe;
use crate::report::{MessageFormat, Warned, show};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  oodbench bench --method diffood
  oodbench bench --method msp,knn --set knn.K=50 --out runs/knn50
  oodbench bench --method all --benchmark cifar10 --data DIR --classifier resnet18_32x32:FILE
  oodbench bench --method all --benchmark my.toml --data DIR --classifier my.toml --dry-run
  oodbench bench --method react,knn --aps --set knn.K=50
  oodbench bench --method all --features DIR

What is finished is kept: the same command started again does what is left.")]
pub(crate) struct BenchArgs {
    /// Detectors, separated by commas, or `all`.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    method: Vec<String>,
    /// A benchmark by name, or a TOML file [default: glyphs].
    #[arg(long, value_name = "NAME|FILE")]
    benchmark: Option<String>,
    /// The folder with the images, for example OpenOOD's `data` [default: data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Weights: FILE, ARCH:FILE, or a TOML file with arch, weights, mean and std.
    #[arg(long, value_name = "FILE")]
    classifier: Option<String>,
    /// A folder of exported features in place of images and a classifier; see docs/features.md.
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// Where to compute: cpu, cuda, cuda:N, or auto, the first GPU if one answers and the CPU
    /// otherwise [default: auto; cpu for exported features].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// What the classifier computes in on a GPU: f32 or tf32 [default: f32]. Detectors have
    /// parameters of their own, as `--set diffood.precision=bf16`.
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    precision: Option<Precision>,
    /// Choose the parameters of each detector on the ID and OOD validation images, among the values
    /// that it suggests; what `--set` says stays.
    #[arg(long)]
    aps: bool,
    /// A parameter of a detector; may be given several times.
    #[arg(long = "set", value_name = "DETECTOR.PARAMETER=VALUE")]
    set: Vec<Setting>,
    /// Score at most N images of each set, validation sets in a search too; the result is marked as
    /// limited.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// The seed of everything random [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The folder of the run [default: runs/BENCHMARK, or runs/ and the name of the features].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A TOML file with these options.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A pack, or a folder with packs; may be given several times.
    #[arg(long, value_name = "PATH")]
    plugin_path: Vec<PathBuf>,
    /// The folder for prepared images and features [default: ~/.cache/oodbench].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Run without the sets whose images are missing; the result is marked as incomplete.
    #[arg(long)]
    allow_missing: bool,
    /// Leave out the detectors that the benchmark runs for comparison.
    #[arg(long)]
    no_baselines: bool,
    /// Count covariate-shifted ID images as in-distribution.
    #[arg(long)]
    full_spectrum: bool,
    /// Run finished cells again.
    #[arg(long)]
    force: bool,
    /// Say what would run, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Where detectors run: in a process each, or, for a debugger, in this one.
    #[arg(long, value_enum, default_value = "process")]
    isolation: IsolationArg,
    /// How long a detector may be silent, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    time_limit: Duration,
    /// How much memory a detector may take, in MiB [default: nine tenths of the machine's].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory_limit: Option<u64>,
    /// How many threads to use [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Images that a network takes at once, or auto: on a GPU the largest power of two that fits
    /// and is of use [default: 128].
    #[arg(long, value_name = "N|auto")]
    batch_size: Option<BatchSize>,
    /// How the leaderboard is printed.
    #[arg(long, value_enum, default_value = "human")]
    message_format: MessageFormat,
    /// How progress is shown.
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
    /// Say more, also what detectors write.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IsolationArg {
    Process,
    None,
}

/// What a classifier computes in.
fn precision(text: &str) -> Result<Precision, String> {
    match text.parse() {
        Ok(Precision::Bf16) | Err(_) => Err("expected `f32` or `tf32`".to_owned()),
        Ok(precision) => Ok(precision),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero());
    duration.ok_or_else(|| "expected a positive number".to_owned())
}

pub(crate) fn run(args: BenchArgs) -> Result<u8, Failure> {
    if !args.dry_run {
        env::restart_for_networks();
    }
    let talk = Talk::new(args.progress, args.verbose);
    let worker = env::worker()?;
    let search = env::search_path(&args.plugin_path)?;
    let request = request(&args, &talk)?;
    let (catalogue, refused) = catalogue(&worker, &search)?;
    for refused in refused {
        talk.line(&format!("warning: {}", refused.message));
        if let Some(details) = refused.details.filter(|_| args.verbose) {
            talk.line(&details);
        }
    }
    require_packs(&catalogue, &search)?;
    if args.dry_run {
        let outline = outline(&request, &catalogue, &worker)?;
        outline.warnings.iter().for_each(|warning| talk.line(&format!("warning: {warning}")));
        print(&describe(&request.out, &outline))?;
        return Ok(DONE);
    }
    let start = Instant::now();
    env::start_threads(request.threads)?;
    let summary = bench(&request, &catalogue, &worker, &talk)?;
    talk.note(&format!(
        "{} cells scored, {} kept, {} failed, in {:.1} s\n",
        summary.done,
        summary.kept,
        summary.failed,
        start.elapsed().as_secs_f64()
    ));
    show(&request.out, args.message_format, &talk, Warned::WhileRunning)
}

fn require_packs(
    catalogue: &Catalogue,
    search: &oodbench_engine::pack::SearchPath,
) -> Result<(), Failure> {
    if !catalogue.packs().is_empty() {
        return Ok(());
    }
    let places: Vec<String> = search.places().map(|p| format!("`{}`", p.display())).collect();
    Err(Failure {
        message: format!("find detector packs: none in {}", places.join(", ")),
        hint: Some("`cargo xtask plugins` builds them; `--plugin-path` names other places".into()),
        code: crate::exit::SETUP,
    })
}

fn request(args: &BenchArgs, talk: &Talk) -> Result<BenchRequest, Failure> {
    let config = ConfigFile::load(args.config.as_deref())?;
    let methods = if args.method.is_empty() { config.method.clone() } else { args.method.clone() };
    if methods.is_empty() {
        let hint = "`--method diffood`, `--method msp,knn` or `--method all`";
        return Err(Failure::usage("bench expected `--method`, got none", Some(hint.to_owned())));
    }
    let source = source(args, &config)?;
    let number = |typed: Option<u64>, file: Option<usize>| typed.map(|n| n as usize).or(file);
    let out = args.out.clone().or_else(|| config.out.clone());
    let out = out.unwrap_or_else(|| PathBuf::from("runs").join(source.name()));
    let device = args.device.as_deref().or(config.device.as_deref());
    // Exported features have been computed already.
    let device = device.or_else(|| matches!(source, Source::Features(_)).then_some("cpu"));
    let Chosen { name: device, gpu, .. } = chosen(device, talk)?;
    let precision = match (args.precision, config.precision.as_deref()) {
        (Some(typed), _) => typed,
        (None, Some(text)) => precision(text).map_err(|expected| {
            Failure::usage(format!("`precision` {expected}, got `{text}`"), None)
        })?,
        (None, None) => Precision::F32,
    };
    if gpu.is_none() && precision != Precision::F32 {
        crate::device::check(precision, &candle_core::Device::Cpu)?;
    }
    let memory = args.memory_limit.map(|mib| mib * (1 << 20)).or_else(env::most_of_memory);
    Ok(BenchRequest {
        methods,
        baselines: !args.no_baselines,
        settings: config.settings().chain(args.set.iter().cloned()).collect(),
        cache: absolute(env::cache(args.cache.as_deref())?)?,
        out: absolute(out)?,
        device,
        gpu,
        precision,
        threads: number(args.threads, config.threads).unwrap_or_else(env::threads),
        seed: args.seed.or(config.seed).unwrap_or(0),
        limit: number(args.limit, config.limit),
        search: args.aps || config.aps,
        batch_size: args.batch_size.or(config.batch_size).unwrap_or_default(),
        full_spectrum: args.full_spectrum,
        force: args.force,
        isolation: match args.isolation {
            IsolationArg::Process => Isolation::Process,
            IsolationArg::None => Isolation::None,
        },
        silence: args.time_limit,
        memory_limit: memory,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        source,
    })
}

/// Images of a benchmark, or exported features. What belongs to the one has no meaning for the
/// other, and would be ignored.
fn source(args: &BenchArgs, config: &ConfigFile) -> Result<Source, Failure> {
    let benchmark = args.benchmark.clone().or_else(|| config.benchmark.clone());
    let data = args.data.clone().or_else(|| config.data.clone());
    let classifier = args.classifier.clone().or_else(|| config.classifier.clone());
    let Some(folder) = args.features.clone().or_else(|| config.features.clone()) else {
        let named = benchmark.unwrap_or_else(|| "glyphs".to_owned());
        let (benchmark, base) = env::benchmark(&named)?;
        let (data, allow_missing) = (data.unwrap_or_else(|| "data".into()), args.allow_missing);
        let images = ImageSource { benchmark, base, data, classifier, allow_missing };
        return Ok(Source::Images(Box::new(images)));
    };
    let of_images = [
        ("--benchmark", benchmark.is_some()),
        ("--data", data.is_some()),
        ("--classifier", classifier.is_some()),
        ("--allow-missing", args.allow_missing),
    ];
    match of_images.iter().find(|(_, given)| *given) {
        None => Ok(Source::Features(folder)),
        Some((option, _)) => Err(Failure::usage(
            format!("bench expected either `--features` or `{option}`, got both"),
            Some(format!(
                "features take the place of images and classifier: leave `{option}` out, here and \
                 in the configuration"
            )),
        )),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path)
        .map_err(|error| Failure::usage(format!("find folder `{}`: {error}", path.display()), None))
}
