//! `denoise table`: the reference's table (`detect/ood_detect.py`) of files of samples.
//!
//! For each OOD set: `base`, the AUROC of the change between the last timestep and the first; then
//! for each timestep after the first `local/global`, the AUROC of its change from the timestep
//! before and from the first. Everything is in per cent; the reference prints `base` and `local`
//! as fractions beside a `global` in per cent, and averages `global` alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use oodbench_diffusion::denoise::samples::{SampleFile, file_name};
use oodbench_diffusion::denoise::{Change, Mode, Space};
use oodbench_metrics::OodMetrics;
use serde_json::{Value, json};

use super::samples_failure;
use crate::diffusion::positive;
use crate::exit::{DONE, Failure, SETUP, print};

/// Options of `denoise table`.
#[derive(Debug, Args)]
pub(super) struct TableArgs {
    /// The folder with files `ID_SET_rREPEATS.npz`.
    dir: PathBuf,
    /// The name of the ID set [default: the one of which the folder has `ID_ID_rREPEATS.npz`].
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Where the change is measured.
    #[arg(long, value_enum, default_value = "logit")]
    space: SpaceArg,
    /// How often each image was taken.
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    repeats: usize,
    /// OOD sets, separated by commas [default: every one that there is, by name].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    set_names: Vec<String>,
    /// How the table is printed. CSV and JSON have FPR@95 too.
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpaceArg {
    /// Pixels; `imgr`, as the reference calls them, is the same.
    #[value(alias = "imgr")]
    Image,
    Feature,
    Logit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Markdown,
    Csv,
    Json,
}

/// One OOD set: what each change achieves, the local ones first.
struct Row {
    name: String,
    n_images: usize,
    metrics: Vec<OodMetrics>,
}

struct Table {
    id: String,
    space: &'static str,
    changes: Vec<Change>,
    n_id: usize,
    rows: Vec<Row>,
}

pub(super) fn run(args: &TableArgs) -> Result<u8, Failure> {
    let found = Found::read(&args.dir, args.repeats)?;
    let id = found.id(args)?;
    let names = found.ood(args, &id)?;
    let (space, space_name) = match args.space {
        SpaceArg::Image => (Space::Image, "image"),
        SpaceArg::Feature => (Space::Feature, "feature"),
        SpaceArg::Logit => (Space::Logit, "logit"),
    };
    let mut id_file = open(&args.dir, &id, &id, args.repeats)?;
    let last = id_file.n_timesteps() - 1;
    let changes: Vec<Change> = [Mode::Local, Mode::Global]
        .into_iter()
        .flat_map(|mode| (1..=last).map(move |nth| Change { mode, nth }))
        .collect();
    let row_len = id_file.row_len(space).map_err(|error| samples_failure(&error))?;
    let of_id = id_file.scores(space, &changes).map_err(|error| samples_failure(&error))?;
    let mut rows = Vec::new();
    for name in names {
        let mut file = open(&args.dir, &id, &name, args.repeats)?;
        if file.n_timesteps() != last + 1 {
            let (expected, got) = (last + 1, file.n_timesteps());
            return Err(setup(format!(
                "`{}` expected {expected} timesteps as the file of `{id}`, got {got}",
                args.dir.join(file_name(&id, &name, args.repeats)).display()
            )));
        }
        let got = file.row_len(space).map_err(|error| samples_failure(&error))?;
        if got != row_len {
            return Err(setup(format!(
                "`{}` expected {row_len} values in a row of `{space_name}` as the file of `{id}`, got {got}",
                args.dir.join(file_name(&id, &name, args.repeats)).display()
            )));
        }
        let of_ood = file.scores(space, &changes).map_err(|error| samples_failure(&error))?;
        let metrics = of_id
            .iter()
            .zip(&of_ood)
            .map(|(id, ood)| OodMetrics::new(id, ood))
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::from)?;
        rows.push(Row { name, n_images: file.n_images(), metrics });
    }
    let table = Table { id, space: space_name, changes, n_id: id_file.n_images(), rows };
    print(&match args.format {
        Format::Markdown => table.markdown(),
        Format::Csv => table.csv(),
        Format::Json => format!("{:#}\n", table.json(args.repeats)),
    })?;
    Ok(DONE)
}

fn setup(message: String) -> Failure {
    Failure { message, hint: None, code: SETUP }
}

fn open(folder: &Path, id: &str, set: &str, repeats: usize) -> Result<SampleFile, Failure> {
    let path = folder.join(file_name(id, set, repeats));
    SampleFile::open(&path, repeats).map_err(|error| samples_failure(&error))
}

/// The files of samples in a folder, without the end of their names.
struct Found {
    folder: PathBuf,
    end: String,
    stems: Vec<String>,
    /// Repeats of the files of which there are some, but not with those that were asked for.
    others: BTreeSet<usize>,
}

impl Found {
    fn read(folder: &Path, repeats: usize) -> Result<Self, Failure> {
        let end = file_name("", "", repeats)[1..].to_owned();
        let entries = std::fs::read_dir(folder)
            .map_err(|error| setup(format!("read folder `{}`: {error}", folder.display())))?;
        let (mut stems, mut others) = (Vec::new(), BTreeSet::new());
        for entry in entries {
            let entry =
                entry.map_err(|error| setup(format!("read `{}`: {error}", folder.display())))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            stems.extend(name.strip_suffix(&end).map(str::to_owned));
            let of_samples = name.strip_suffix(".npz").and_then(|stem| stem.rsplit_once("_r"));
            others.extend(of_samples.and_then(|(_, repeats)| repeats.parse::<usize>().ok()));
        }
        stems.sort();
        others.remove(&repeats);
        Ok(Self { folder: folder.to_owned(), end, stems, others })
    }

    /// The ID set that was named, or the only one of which there is a file.
    fn id(&self, args: &TableArgs) -> Result<String, Failure> {
        let twice = |stem: &&String| {
            let half = stem.len() / 2;
            stem.len() % 2 == 1
                && stem.is_char_boundary(half)
                && stem.as_bytes()[half] == b'_'
                && stem[..half] == stem[half + 1..]
        };
        let ids: Vec<&str> =
            self.stems.iter().filter(twice).map(|stem| &stem[..stem.len() / 2]).collect();
        let wanted = args.id.as_deref();
        match (wanted, &ids[..]) {
            (Some(id), ids) if ids.contains(&id) => Ok(id.to_owned()),
            (None, [id]) => Ok((*id).to_owned()),
            (None, [_, _, ..]) => Err(Failure::usage(
                format!("`{}` has samples of several ID sets", self.folder.display()),
                Some(format!("`--id NAME`, one of {}", ids.join(", "))),
            )),
            (wanted, _) => {
                let id = wanted.unwrap_or("ID");
                Err(Failure {
                    message: format!(
                        "`{}` expected a file `{id}_{id}{}`, got {}",
                        self.folder.display(),
                        self.end,
                        self.listed()
                    ),
                    hint: Some(match self.others.first() {
                        Some(n) if self.stems.is_empty() => {
                            format!("`--repeats {n}`: there are files `…_r{n}.npz`")
                        }
                        _ => "`oodbench denoise save` makes such files".to_owned(),
                    }),
                    code: SETUP,
                })
            }
        }
    }

    /// The OOD sets that were named, or every one that there is.
    fn ood(&self, args: &TableArgs, id: &str) -> Result<Vec<String>, Failure> {
        let prefix = format!("{id}_");
        let there: Vec<&str> =
            self.stems.iter().filter_map(|stem| stem.strip_prefix(&prefix)).collect();
        let wanted: Vec<&str> = match args.set_names.is_empty() {
            true => there.iter().copied().filter(|&name| name != id).collect(),
            false => args.set_names.iter().map(String::as_str).collect(),
        };
        if let Some(name) = wanted.iter().find(|name| !there.contains(name)) {
            let message = format!(
                "`{}` expected a file `{id}_{name}{}`, got {}",
                self.folder.display(),
                self.end,
                self.listed()
            );
            return Err(setup(message));
        }
        if wanted.is_empty() {
            let message = format!(
                "`{}` expected files of OOD sets beside `{id}_{id}{}`, got none",
                self.folder.display(),
                self.end
            );
            return Err(setup(message));
        }
        Ok(wanted.into_iter().map(str::to_owned).collect())
    }

    fn listed(&self) -> String {
        let names: Vec<String> =
            self.stems.iter().map(|stem| format!("`{stem}{}`", self.end)).collect();
        if names.is_empty() { "no file of that kind".to_owned() } else { names.join(", ") }
    }
}

fn percent(fraction: Option<f64>) -> String {
    fraction.map_or_else(String::new, |fraction| format!("{:.2}", 100.0 * fraction))
}

impl Table {
    /// How many timesteps there are after the first.
    fn last(&self) -> usize {
        self.changes.len() / 2
    }

    fn mean(&self) -> Vec<OodMetrics> {
        let of_change = |i: usize| {
            OodMetrics::group_mean(&self.rows.iter().map(|row| row.metrics[i]).collect::<Vec<_>>())
        };
        (0..self.changes.len()).map(of_change).collect()
    }

    fn markdown(&self) -> String {
        let last = self.last();
        let cells = |name: &str, metrics: &[OodMetrics]| -> Vec<String> {
            let auroc = |i: usize| percent(metrics[i].auroc);
            let pair = |nth: usize| format!("{}/{}", auroc(nth - 1), auroc(last + nth - 1));
            let start = [name.to_owned(), auroc(2 * last - 1)];
            start.into_iter().chain((1..=last).map(pair)).collect()
        };
        let mut header = vec!["name".to_owned(), "base".to_owned()];
        header.extend((1..=last).map(|nth| nth.to_string()));
        let mut lines = vec![header];
        lines.extend(self.rows.iter().map(|row| cells(&row.name, &row.metrics)));
        lines.push(cells("avg", &self.mean()));
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..last + 2).map(width).collect();
        let line = |cells: &[String]| {
            let padded =
                cells.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:<width$} |"));
            format!("|{}\n", padded.collect::<String>())
        };
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let mut text = line(&lines[0]) + &line(&rule);
        lines[1..].iter().for_each(|cells| text.push_str(&line(cells)));
        text
    }

    fn csv(&self) -> String {
        let mut text = "id,dataset,space,mode,change,AUROC,FPR@95,n_id,n_ood\n".to_owned();
        for row in &self.rows {
            for (change, metrics) in self.changes.iter().zip(&row.metrics) {
                let (auroc, fpr) = (percent(metrics.auroc), percent(metrics.fpr95));
                text.push_str(&format!(
                    "{},{},{},{},{},{auroc},{fpr},{},{}\n",
                    quoted(&self.id),
                    quoted(&row.name),
                    self.space,
                    mode(change.mode),
                    change.nth,
                    self.n_id,
                    row.n_images
                ));
            }
        }
        text
    }

    fn json(&self, repeats: usize) -> Value {
        let of_change = |change: &Change, metrics: &OodMetrics| {
            json!({
                "mode": mode(change.mode),
                "change": change.nth,
                "auroc": metrics.auroc,
                "fpr95": metrics.fpr95,
            })
        };
        let changes = |metrics: &[OodMetrics]| -> Vec<Value> {
            self.changes.iter().zip(metrics).map(|(c, m)| of_change(c, m)).collect()
        };
        let row = |row: &Row| json!({ "name": row.name, "n_images": row.n_images, "changes": changes(&row.metrics) });
        json!({
            "id": self.id,
            "n_id": self.n_id,
            "space": self.space,
            "repeats": repeats,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "mean": changes(&self.mean()),
        })
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Local => "local",
        Mode::Global => "global",
    }
}

/// A name as a field of CSV.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
