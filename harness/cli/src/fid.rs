//! `oodbench fid`: how far two sets of images are apart, as pytorch-fid measures it.
//!
//! A set is a folder of images, a file of statistics, or a sample of a diffusion network, which is
//! measured as it is made, without files.

mod folder;
mod progress;
mod sampled;
mod set;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use oodbench_diffusion::batch::{Batch, DEFAULT_BATCH};
use oodbench_diffusion::fid::{FidError, frechet_distance};
use oodbench_engine::text::chain;
use oodbench_nn::inception::{FILE_HINT, N_FEATURES};
use oodbench_nn::npz::{NpzError, NpzWriter};

use crate::diffusion::{DiffusionArgs, positive};
use crate::exit::{DONE, Failure, SETUP, WRITE_FAILED, print};
use set::{Measured, Network, Set};

#[derive(Debug, Args)]
#[command(
    // Without a sample they would do nothing, in silence.
    mut_args(|arg| match arg.get_id().as_str() {
        "weights" | "config" | "method" | "steps" | "indexing" | "tolerance" => {
            arg.requires("sample")
        }
        _ => arg,
    }),
    after_help = "\
Examples:
  oodbench fid DIR_A DIR_B --inception FILE             two folders of images
  oodbench fid DIR --save cifar10.npz --inception FILE  statistics for later
  oodbench fid DIR cifar10.npz --inception FILE         a folder against statistics
  oodbench fid a.npz b.npz                              needs no network
  oodbench fid --sample 50000 --weights FILE cifar10.npz --inception FILE

The weights of Inception are pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, published among
the releases of github.com/mseitzer/pytorch-fid. In a folder every file named as an image counts;
folders below it do not, unless `--recursive` is given."
)]
pub(crate) struct FidArgs {
    /// Two sets, each a folder of images or an `.npz` file of statistics; one with `--sample`, or
    /// where `--save` is all that is wanted.
    #[arg(value_name = "SET", num_args = 0..=2)]
    sets: Vec<PathBuf>,
    /// The weights of Inception-v3 as pytorch-fid uses them.
    #[arg(long, value_name = "FILE", env = "OODBENCH_INCEPTION")]
    inception: Option<PathBuf>,
    /// Write the statistics of the first set, or of the sample, to an `.npz` file that pytorch-fid
    /// reads.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Count the images in folders below as well.
    #[arg(long)]
    recursive: bool,
    /// Sample N images of a diffusion network; they are the first set.
    #[arg(long, value_name = "N", value_parser = positive)]
    sample: Option<usize>,
    /// Weight of the classifier-free guidance of a sample by random classes; 0 for none.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "2",
        allow_negative_numbers = true,
        requires = "sample"
    )]
    beta: f64,
    /// The seed of a sample: of its noise and its classes.
    #[arg(long, value_name = "N", default_value = "0", requires = "sample")]
    seed: u64,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    /// How the distance is printed.
    #[arg(long, value_enum, default_value = "human")]
    message_format: MessageFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MessageFormat {
    /// A line.
    Human,
    /// An object with both sets.
    Json,
}

/// Runs the command.
///
/// # Errors
/// Arguments that make no sense, sets or weights that cannot be read, statistics that cannot be
/// written or have no distance.
pub(crate) fn run(args: &FidArgs) -> Result<u8, Failure> {
    let mut steps = args.diffusion.start()?;
    let sets = sets(args)?;
    let needs_network = sets.iter().any(|set| !matches!(set, Set::Statistics(..)));
    if needs_network || args.diffusion.names_device() {
        args.diffusion.choose_device(&steps)?;
    }
    if let Some(path) = &args.save {
        // A place that cannot be written to is better known now than in an hour.
        NpzWriter::create(path).map_err(|error| failure(error.into()))?;
    }
    let network = match needs_network {
        true => {
            let path = args.inception.as_deref();
            let batch = match args.diffusion.batch_size {
                Batch::Of(batch) => batch,
                // Inception at 299 pixels keeps a GPU busy with that.
                Batch::Auto => DEFAULT_BATCH,
            };
            Some(Network::load(path, &args.diffusion.device()?, batch)?)
        }
        false => None,
    };
    let mut measured = Vec::new();
    for (nth, set) in sets.iter().enumerate() {
        let set = set.measure(args, network.as_ref(), &mut steps)?;
        if nth == 0
            && let Some(path) = &args.save
        {
            set.statistics.write(path).map_err(failure)?;
            steps.talk.note(&format!("wrote statistics `{}`", path.display()));
        }
        measured.push(set);
    }
    if let [first, second] = measured.as_slice() {
        let distance = frechet_distance(&first.statistics, &second.statistics).map_err(failure)?;
        print(&answer(distance, first, second, args.message_format))?;
    }
    Ok(DONE)
}

/// The sets that were asked for, opened so far that what is missing or broken is known before
/// anything is computed.
fn sets(args: &FidArgs) -> Result<Vec<Set>, Failure> {
    let n_sets = args.sets.len() + usize::from(args.sample.is_some());
    let enough = if args.save.is_some() { 1..=2 } else { 2..=2 };
    if !enough.contains(&n_sets) {
        let message = format!("a distance expected two sets of images, got {n_sets}");
        let hint = match n_sets {
            1 => "name a second one, or a file for the statistics of the first with `--save`",
            0 => "name two, each a folder of images or an `.npz` file; or `--sample N` and one",
            _ => "`--sample` is the first of the two",
        };
        return Err(Failure::usage(message, Some(hint.to_owned())));
    }
    let mut sets = Vec::new();
    if let Some(count) = args.sample {
        sets.push(Set::Sample(count));
    }
    for path in &args.sets {
        sets.push(Set::open(path, args.recursive)?);
    }
    if args.save.is_some()
        && let Some(Set::Statistics(path, _)) = sets.first()
    {
        let message = format!("`--save` expected images, got the statistics `{}`", path.display());
        return Err(Failure::usage(message, None));
    }
    if let [Set::Statistics(_, first), Set::Statistics(_, second)] = sets.as_slice() {
        let (first, second) = (first.n_features(), second.n_features());
        if first != second {
            return Err(failure(FidError::Sizes { first, second }));
        }
        return Ok(sets);
    }
    for set in &sets {
        if let Set::Statistics(path, statistics) = set
            && statistics.n_features() != N_FEATURES
        {
            return Err(Failure {
                message: format!(
                    "compare with `{}`: expected statistics of {N_FEATURES} features, got {}",
                    path.display(),
                    statistics.n_features()
                ),
                hint: Some("pytorch-fid's `--dims` other than 2048 is not offered".to_owned()),
                code: SETUP,
            });
        }
    }
    Ok(sets)
}

fn answer(distance: f64, first: &Measured, second: &Measured, format: MessageFormat) -> String {
    match format {
        MessageFormat::Human => format!("fid: {distance:.6}\n"),
        MessageFormat::Json => {
            let set =
                |set: &Measured| serde_json::json!({ "set": set.name, "images": set.n_images });
            let (first, second) = (set(first), set(second));
            let answer = serde_json::json!({ "fid": distance, "first": first, "second": second });
            format!("{answer}\n")
        }
    }
}

/// What the library says, with the remedy where there is one.
fn failure(error: FidError) -> Failure {
    let code = match &error {
        FidError::File(NpzError::Write { .. }) => WRITE_FAILED,
        _ => SETUP,
    };
    let hint = match &error {
        FidError::File(NpzError::NoArray { .. }) | FidError::Statistics { .. } => {
            "a file of statistics is what `--save` writes, or `pytorch_fid --save-stats`: arrays \
             `mu` [2048] and `sigma` [2048, 2048]"
        }
        FidError::File(NpzError::Archive { .. } | NpzError::Array { .. }) => {
            "the file is damaged or was not copied to its end: fetch or make it again"
        }
        FidError::NotFinite { .. } => FILE_HINT,
        _ => "",
    };
    let hint = Some(hint).filter(|hint| !hint.is_empty()).map(str::to_owned);
    Failure { message: chain(&error), hint, code }
}
