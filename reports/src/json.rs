//! `leaderboard.json`: everything a leaderboard holds, for scripts.
//!
//! Rates are fractions between 0 and 1, times are seconds, sizes are bytes, and what is absent is
//! `null`. `schema` changes when a field changes its meaning or goes; new fields come without.
//! An average over less than the whole group is `near_partial` or `far_partial`, and `near` or
//! `far` is `null` then, so that no script takes the one for the other.

use oodbench_metrics::OodMetrics;
use oodbench_record::{CellState, Classifier, ListedSet, Machine, MissingSet, PackId, Warning};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::ReportError;
use crate::figures::one_line;
use crate::leaderboard::{Group, Leaderboard};
use crate::row::Row;
use crate::search::SearchTable;

/// The version of the layout.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct File<'a> {
    format: &'static str,
    schema: u32,
    oodbench: &'a str,
    benchmark: Benchmark<'a>,
    classifier: &'a Classifier,
    /// Of the classifier, over all ID images.
    accuracy: Option<f64>,
    seed: u64,
    limit: Option<usize>,
    full_spectrum: bool,
    machine: &'a Machine,
    /// Why no number is the benchmark's own.
    marks: Vec<String>,
    missing: &'a [MissingSet],
    /// Everything that a reader should know, marks included.
    warnings: Vec<JsonWarning<'a>>,
    sets: Vec<Set<'a>>,
    rows: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonWarning<'a> {
    kind: &'static str,
    /// The row that it is about; `null` for the whole run.
    label: Option<&'a str>,
    cause: String,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Benchmark<'a> {
    name: &'a str,
    title: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
struct Set<'a> {
    role: &'a str,
    name: &'a str,
    n_images: usize,
    of_images: usize,
    content: &'a str,
    accuracy: Option<f64>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    label: &'a str,
    id: &'a str,
    title: &'a str,
    family: &'a str,
    year: u32,
    params: &'a Map<String, Value>,
    /// `null` where all parameters were given.
    search: Option<JsonSearch<'a>>,
    status: &'static str,
    reason: Option<String>,
    near: Option<Metrics>,
    near_partial: Option<Metrics>,
    far: Option<Metrics>,
    far_partial: Option<Metrics>,
    /// The OOD sets, near ones first.
    sets: Vec<SetResult<'a>>,
    cost: Option<Cost<'a>>,
    pack: Option<&'a PackId>,
    warnings: Vec<String>,
}

/// The search that parameters come from.
#[derive(Serialize)]
struct JsonSearch<'a> {
    id: &'a ListedSet,
    ood: &'a ListedSet,
    parameters: &'a [String],
    /// The place of the chosen one among the combinations.
    chosen: Option<usize>,
    combinations: Vec<JsonTried<'a>>,
}

#[derive(Serialize)]
struct JsonTried<'a> {
    params: &'a Map<String, Value>,
    status: &'static str,
    reason: Option<&'a str>,
    /// The OOD validation images against the ID ones.
    metrics: Option<Metrics>,
    score_s: Option<f64>,
}

#[derive(Serialize)]
struct SetResult<'a> {
    role: &'a str,
    name: &'a str,
    /// `done`, `failed`, `skipped` or `outstanding`.
    status: &'static str,
    metrics: Option<Metrics>,
}

#[derive(Serialize)]
struct Metrics {
    auroc: Option<f64>,
    aupr_in: Option<f64>,
    aupr_out: Option<f64>,
    fpr95: Option<f64>,
    fpr95_id_positive: Option<f64>,
    fpr95_openood: Option<f64>,
}

#[derive(Serialize)]
struct Cost<'a> {
    fit_s: f64,
    score_images_per_s: Option<f64>,
    peak_bytes: Option<u64>,
    device: &'a str,
    threads: usize,
}

/// The whole file.
///
/// # Errors
/// [`ReportError::Layout`] where the writer refuses.
pub fn render(board: &Leaderboard) -> Result<String, ReportError> {
    let manifest = &board.manifest;
    let file = File {
        format: "oodbench-leaderboard",
        schema: SCHEMA,
        oodbench: &manifest.version,
        benchmark: Benchmark {
            name: &manifest.benchmark,
            title: &manifest.title,
            version: &manifest.benchmark_version,
        },
        classifier: &manifest.classifier,
        accuracy: board.accuracy,
        seed: manifest.seed,
        limit: manifest.limit,
        full_spectrum: manifest.full_spectrum,
        machine: &manifest.machine,
        marks: board.marks.iter().map(Warning::cause).collect(),
        missing: &manifest.missing,
        warnings: board.marks.iter().chain(&board.warnings).map(warning).collect(),
        sets: board.sets.iter().map(set).collect(),
        rows: board.rows.iter().map(|row| json_row(board, row)).collect(),
    };
    let mut text =
        serde_json::to_string_pretty(&file).map_err(ReportError::layout("leaderboard.json"))?;
    text.push('\n');
    Ok(text)
}

fn warning(warning: &Warning) -> JsonWarning<'_> {
    JsonWarning {
        kind: warning.kind(),
        label: warning.label(),
        cause: one_line(&warning.cause()),
        remedy: warning.remedy(),
    }
}

fn set(set: &crate::ScoredSet) -> Set<'_> {
    Set {
        role: &set.listed.set.role,
        name: &set.listed.set.name,
        n_images: set.listed.n_images,
        of_images: set.listed.of_images,
        content: &set.listed.content,
        accuracy: set.accuracy,
    }
}

fn json_row<'a>(board: &'a Leaderboard, row: &'a Row) -> JsonRow<'a> {
    let standing = board.standing(row);
    let average = |group: Group, partial: bool| {
        let is_asked_for = board.group(group).is_partial() == partial;
        metrics(board.average(row, group)).filter(|_| is_asked_for)
    };
    let results = board.ood_sets().map(|(place, set)| SetResult {
        role: &set.listed.set.role,
        name: &set.listed.set.name,
        status: match &row.cells[place] {
            CellState::Done(..) => "done",
            CellState::Failed(_) => "failed",
            CellState::Outstanding if row.status.word() == "skipped" => "skipped",
            CellState::Outstanding => "outstanding",
        },
        metrics: metrics(&row.metrics[place]),
    });
    JsonRow {
        label: &row.label,
        id: &row.id,
        title: &row.title,
        family: &row.family,
        year: row.year,
        params: &row.params,
        search: row.search.as_ref().map(json_search),
        status: standing.word,
        reason: Some(standing.reason).filter(|reason| !reason.is_empty()),
        near: average(Group::Near, false),
        near_partial: average(Group::Near, true),
        far: average(Group::Far, false),
        far_partial: average(Group::Far, true),
        sets: results.collect(),
        cost: row.cost.as_ref().map(|cost| Cost {
            fit_s: cost.fit_s,
            score_images_per_s: cost.score_images_per_s,
            peak_bytes: cost.peak_bytes,
            device: &cost.device,
            threads: cost.threads,
        }),
        pack: row.pack.as_ref(),
        warnings: row.warnings.iter().map(|warning| one_line(warning)).collect(),
    }
}

fn json_search(search: &SearchTable) -> JsonSearch<'_> {
    let combinations = search.tried.iter().map(|tried| JsonTried {
        params: &tried.params,
        status: tried.status.word(),
        reason: Some(tried.status.reason()).filter(|reason| !reason.is_empty()),
        metrics: metrics(&tried.metrics),
        score_s: tried.score_s,
    });
    JsonSearch {
        id: &search.id,
        ood: &search.ood,
        parameters: &search.parameters,
        chosen: search.chosen,
        combinations: combinations.collect(),
    }
}

/// `None` where all of them are absent.
fn metrics(metrics: &OodMetrics) -> Option<Metrics> {
    metrics.auroc?;
    Some(Metrics {
        auroc: metrics.auroc,
        aupr_in: metrics.aupr_in,
        aupr_out: metrics.aupr_out,
        fpr95: metrics.fpr95,
        fpr95_id_positive: metrics.fpr95_id_positive,
        fpr95_openood: metrics.fpr95_openood,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    fn value(run: &TestRun) -> Value {
        serde_json::from_str(&render(&run.board()).unwrap()).unwrap()
    }

    #[test]
    fn the_layout_is_that_of_schema_1() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 2);
        run.detector("msp", &[&[0.0, 0.25, 0.25, 0.5], &[0.25, 0.75]]);
        let expected = r#"
{
  "format": "oodbench-leaderboard",
  "schema": 1,
  "oodbench": "0.1.0",
  "benchmark": {
    "name": "toy",
    "title": "Toy digits",
    "version": "1"
  },
  "classifier": {
    "name": "net.safetensors",
    "arch": "mlp",
    "blake3": "0123456789abcdef",
    "mean": [
      0.0,
      0.0,
      0.0
    ],
    "std": [
      1.0,
      1.0,
      1.0
    ],
    "n_features": 2
  },
  "accuracy": 0.75,
  "seed": 7,
  "limit": null,
  "full_spectrum": false,
  "machine": {
    "platform": "toy-os",
    "threads": 2,
    "device": "cpu"
  },
  "marks": [],
  "missing": [],
  "warnings": [],
  "sets": [
    {
      "role": "id-test",
      "name": "digits",
      "n_images": 4,
      "of_images": 4,
      "content": "content-of-digits",
      "accuracy": 0.75
    },
    {
      "role": "near",
      "name": "letters",
      "n_images": 2,
      "of_images": 2,
      "content": "content-of-letters",
      "accuracy": null
    }
  ],
  "rows": [
    {
      "label": "msp",
      "id": "msp",
      "title": "MSP",
      "family": "logits",
      "year": 2017,
      "params": {
        "temperature": 1.0
      },
      "search": null,
      "status": "done",
      "reason": null,
      "near": {
        "auroc": 0.75,
        "aupr_in": 0.88125,
        "aupr_out": 0.725,
        "fpr95": 0.75,
        "fpr95_id_positive": 0.5,
        "fpr95_openood": 0.75
      },
      "near_partial": null,
      "far": null,
      "far_partial": null,
      "sets": [
        {
          "role": "near",
          "name": "letters",
          "status": "done",
          "metrics": {
            "auroc": 0.75,
            "aupr_in": 0.88125,
            "aupr_out": 0.725,
            "fpr95": 0.75,
            "fpr95_id_positive": 0.5,
            "fpr95_openood": 0.75
          }
        }
      ],
      "cost": {
        "fit_s": 0.25,
        "score_images_per_s": 6.0,
        "peak_bytes": 12345678,
        "device": "cpu",
        "threads": 2
      },
      "pack": {
        "name": "posthoc",
        "version": "0.1.0",
        "blake3": "ff"
      },
      "warnings": []
    }
  ]
}
"#;
        assert_eq!(render(&run.board()).unwrap(), expected.trim_start());
    }

    #[test]
    fn a_partial_average_has_another_name() {
        let mut run = TestRun::small();
        run.missing("far", "svhn");
        let value = value(&run);
        let row = &value["rows"][0];
        assert_eq!((&row["far"], &row["far_partial"]["auroc"]), (&Value::Null, &1.0.into()));
        assert_eq!((&row["near_partial"], &row["near"]["fpr95"]), (&Value::Null, &0.75.into()));
        assert_eq!(value["marks"][0], "incomplete: missing far/svhn");
        assert_eq!(row["status"], "partial");
    }

    #[test]
    fn what_has_no_scores_has_null_and_a_reason() {
        let value = value(&TestRun::small());
        let failed = &value["rows"][3];
        assert_eq!(failed["reason"], "panicked: index out of bounds");
        for absent in [&failed["near"], &failed["cost"], &failed["sets"][0]["metrics"]] {
            assert_eq!(absent, &Value::Null);
        }
        assert_eq!(failed["sets"][0]["status"], "failed");
        assert_eq!(value["rows"][2]["sets"][0]["status"], "skipped");
    }
}
