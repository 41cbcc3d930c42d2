//! `denoise save`: a file of denoised images for each set of a benchmark.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use oodbench_datasets::{Located, Pack, Progress, Role};
use oodbench_diffusion::denoise::samples::{SampleFile, SampleSizes, SampleWriter, file_name};
use oodbench_diffusion::denoise::{DenoiseError, Group, Images, noise};
use oodbench_engine::EngineError;
use oodbench_engine::image::{image_key, images};
use oodbench_engine::text::chain;
use serde_json::Value;

use super::process::{Process, ProcessArgs, Scene, refused};
use super::samples_failure;
use crate::diffusion::{check_folder, positive};
use crate::exit::{CELLS_FAILED, DONE, Failure, SETUP, print};
use crate::observer::Talk;

/// Images that are read and classified at once, about.
const IMAGES_AT_ONCE: usize = 128;

/// Options of `denoise save`.
#[derive(Debug, Args)]
pub(super) struct SaveArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// The folder for the files `ID_SET_rREPEATS.npz`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Sets of the benchmark, separated by commas: SET, or SET=NAME to call it so in its file's
    /// name [default: ID test, near and far sets].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    set_names: Vec<String>,
    /// At most N images of each set, spread evenly; the reference takes 1000.
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Write files again that are there.
    #[arg(long)]
    force: bool,
}

/// A set and the name that its file has.
struct Chosen {
    set: Located,
    name: String,
}

pub(super) fn run(args: &SaveArgs) -> Result<u8, Failure> {
    let talk = args.process.begin()?;
    check_folder(&args.out)?;
    let scene = Scene::open(&args.process)?;
    let (id, chosen) = choose(&scene, &args.set_names)?;
    let mut packs = Vec::new();
    for Chosen { set, name } in chosen {
        packs.push((name, scene.prepare(set, args.limit, &talk)?));
    }
    let size = one_size(&packs)?;
    let process = scene.process(size, &talk)?;
    sweep(&args.out);
    for (name, pack) in &packs {
        let path = args.out.join(file_name(&id, name, args.process.repeats));
        let comment = comment(&process, pack);
        if args.force || !is_kept(&path, args.process.repeats, &comment)? {
            save(&process, pack, &path, &comment, &talk)?;
        } else {
            talk.note(&format!("{}: kept", path.display()));
        }
        print(&format!("{}\n", path.display()))?;
    }
    process.say_refused(&talk);
    Ok(DONE)
}

/// Removes what a `save` that was killed at the very end left half written. Another one may be at
/// work: what is younger than a day may be its own. What cannot be removed does no harm.
fn sweep(folder: &Path) {
    const DAY: Duration = Duration::from_secs(86_400);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|t| t.elapsed());
        let is_old = matches!(age, Ok(Ok(age)) if age > DAY);
        if is_old && entry.file_name().to_string_lossy().starts_with(".partial-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The sets to take, by role and name, and what the ID set is called.
fn choose(scene: &Scene<'_>, typed: &[String]) -> Result<(String, Vec<Chosen>), Failure> {
    let is_default = |role| matches!(role, Role::IdTest | Role::Near | Role::Far);
    let is_offered = |role| is_default(role) || role == Role::Csid;
    let mut sets: Vec<Located> = scene.sets();
    sets.retain(|set| is_offered(set.set.role));
    let Some(id) = sets.iter().find(|set| set.set.role == Role::IdTest) else {
        let message = format!("benchmark `{}` has no ID test set", scene.benchmark.name);
        return Err(Failure::usage(message, None));
    };
    let mut id = id.set.name.clone();
    if typed.is_empty() {
        sets.retain(|set| is_default(set.set.role));
        let chosen = |set: Located| Chosen { name: set.set.name.clone(), set };
        let chosen: Vec<Chosen> = sets.into_iter().map(chosen).collect();
        one_file_each(&chosen)?;
        return Ok((id, chosen));
    }
    let mut chosen = Vec::new();
    for text in typed {
        let (wanted, name) = text.split_once('=').unwrap_or((text, text));
        if name.is_empty() || name.contains(['/', '\\']) {
            let message = format!("`--set-names` expected SET or SET=NAME, got `{text}`");
            return Err(Failure::usage(message, None));
        }
        let Some(at) = sets.iter().position(|set| set.set.name == wanted) else {
            let known: Vec<String> = sets.iter().map(|set| set.set.name.clone()).collect();
            let known = known.iter().map(String::as_str);
            return Err(EngineError::unknown("set of the benchmark", wanted, known).into());
        };
        let set = sets.remove(at);
        if set.set.role == Role::IdTest {
            id = name.to_owned();
        }
        chosen.push(Chosen { set, name: name.to_owned() });
    }
    one_file_each(&chosen)?;
    Ok((id, chosen))
}

/// A near and a far set may have one name, and two sets may be given one.
fn one_file_each(chosen: &[Chosen]) -> Result<(), Failure> {
    let mut names = HashSet::new();
    match chosen.iter().find(|chosen| !names.insert(&chosen.name)) {
        None => Ok(()),
        Some(Chosen { name, .. }) => Err(Failure::usage(
            format!("files of sets expected a name each, got `{name}` twice"),
            Some("`--set-names SET=NAME` gives the file of a set another name".to_owned()),
        )),
    }
}

fn one_size(packs: &[(String, Pack)]) -> Result<(usize, usize), Failure> {
    let size = |pack: &Pack| (pack.height() as usize, pack.width() as usize);
    let first = packs.first().map_or((0, 0), |(_, pack)| size(pack));
    match packs.iter().find(|(_, pack)| size(pack) != first) {
        None => Ok(first),
        Some((name, pack)) => Err(Failure {
            message: format!(
                "images of `{name}` expected {}x{} as the first set, got {}x{}",
                first.0,
                first.1,
                pack.height(),
                pack.width()
            ),
            hint: None,
            code: SETUP,
        }),
    }
}

/// All that decides what is in a file.
fn comment(process: &Process<'_>, pack: &Pack) -> String {
    let mut settings = process.settings().clone();
    settings["n_images"] = pack.len().into();
    settings["images"] = pack.content_hash().into();
    settings.to_string()
}

/// Whether a file is there that was made with these settings.
fn is_kept(path: &Path, repeats: usize, comment: &str) -> Result<bool, Failure> {
    if !path.exists() {
        return Ok(false);
    }
    let again = "`--force` writes it again, `--out` names another folder";
    let file = SampleFile::open(path, repeats)
        .map_err(|error| Failure { hint: Some(again.to_owned()), ..samples_failure(&error) })?;
    if file.comment() == comment {
        return Ok(true);
    }
    let difference =
        match (serde_json::from_str::<Value>(file.comment()), serde_json::from_str(comment)) {
            (Ok(Value::Object(got)), Ok(Value::Object(expected))) => expected
                .iter()
                .find(|(key, value)| got.get(*key) != Some(value))
                .map(|(key, value)| {
                    let got = got.get(key).unwrap_or(&Value::Null);
                    format!("`{key}` expected {value}, got {got}")
                }),
            _ => None,
        };
    let difference = difference.unwrap_or_else(|| "it does not say how it was made".to_owned());
    Err(Failure {
        message: format!("keep `{}`: {difference}", path.display()),
        hint: Some(again.to_owned()),
        code: SETUP,
    })
}

fn save(
    process: &Process<'_>,
    pack: &Pack,
    path: &Path,
    comment: &str,
    talk: &Talk,
) -> Result<(), Failure> {
    let scoring = process.scoring();
    let sizes = SampleSizes {
        n_timesteps: scoring.timesteps.len(),
        n_images: pack.len(),
        repeats: scoring.repeats,
        size: process.size(),
    };
    let mut writer = SampleWriter::create(path, sizes).map_err(|e| samples_failure(&e))?;
    let at_once = scoring.images_at_once();
    let at_once = IMAGES_AT_ONCE.div_ceil(at_once) * at_once;
    talk.begin(&format!("denoise {}", pack.name()), pack.len() as u64);
    let mut save_some = |first: usize| -> Result<(), Failure> {
        let range = first..(first + at_once).min(pack.len());
        let failed = |error: &dyn std::error::Error| Failure {
            message: format!("denoise {}: {}", pack.name(), chain(error)),
            hint: None,
            code: CELLS_FAILED,
        };
        let values = images(pack, range);
        let images = Images::new(&values, process.size()).map_err(|error| failed(&error))?;
        let classes = process.classes(images)?;
        let noise = |image: usize, repeat, len| {
            noise::noise(process.seed(), image_key(pack.id(first + image)), repeat, len)
        };
        let mut not_written = None;
        let mut write = |group: Group<'_>| {
            let n_images = group.images.len();
            writer.add(group.samples, n_images).map_err(|error| {
                not_written = Some(samples_failure(&error));
                DenoiseError::Caller(error.into())
            })?;
            talk.advance(n_images as u64);
            Ok(())
        };
        let classify = |images: Images<'_>| process.classify(images);
        let done = scoring.for_each_group(
            images,
            &classes,
            &noise,
            Some(&classify),
            &mut || Ok(()),
            &mut write,
        );
        match (done, not_written) {
            (_, Some(failure)) => Err(failure),
            (Err(error), None) => Err(refused(&format!("denoise {}", pack.name()), &error)),
            (Ok(()), None) => Ok(()),
        }
    };
    let saved = (0..pack.len()).step_by(at_once).try_for_each(&mut save_some);
    talk.end();
    saved?;
    writer.finish(comment).map_err(|error| samples_failure(&error))
}
