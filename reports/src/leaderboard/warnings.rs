//! What a reader should know before trusting the numbers, but for the marks of a run.

use oodbench_record::{SweepEnd, Warning};
use serde_json::Value;

use super::Leaderboard;
use crate::row::Row;
use crate::search::SearchTable;

/// The fewest values of a parameter that have ends and something in between.
const FEWEST_VALUES: usize = 3;

/// Of the run, then of the rows in their order.
pub(super) fn of(board: &Leaderboard) -> Vec<Warning> {
    let noticed = board.manifest.warnings.iter();
    let mut warnings: Vec<Warning> =
        noticed.map(|text| Warning::Input { text: text.clone() }).chain(accuracy(board)).collect();
    for row in &board.rows {
        below_chance(board, row, &mut warnings);
        if let Some(search) = &row.search {
            sweep_ends(&row.label, search, &mut warnings);
        }
        let said = row.warnings.iter();
        warnings.extend(
            said.map(|text| Warning::Said { label: row.label.clone(), text: text.clone() }),
        );
    }
    warnings
}

fn accuracy(board: &Leaderboard) -> Option<Warning> {
    let classifier = &board.manifest.classifier;
    let test = board.sets.iter().find(|set| set.listed.set.role == "id-test")?;
    let n_classes = classifier.n_classes?;
    let (set, n_images) = (&test.listed.set, test.listed.n_images);
    Warning::of_accuracy(set, test.accuracy?, n_images, classifier.stated_accuracy, n_classes)
}

/// One for each detector: a benchmark may have a hundred sets.
fn below_chance(board: &Leaderboard, row: &Row, warnings: &mut Vec<Warning>) {
    let sets = board.ood_sets().filter_map(|(place, set)| Some((set, row.metrics[place].auroc?)));
    let below: Vec<_> = sets.filter(|(_, auroc)| *auroc < 0.5).collect();
    // Of equally bad ones the first.
    if let Some(&(set, auroc)) = below.iter().min_by(|(_, a), (_, b)| a.total_cmp(b)) {
        let (label, set) = (row.label.clone(), set.listed.set.clone());
        warnings.push(Warning::BelowChance { label, set, auroc, n_others: below.len() - 1 });
    }
}

/// Numeric parameters of which a search chose the least or the greatest value that it tried, and was
/// better off with it than with any other.
fn sweep_ends(label: &str, search: &SearchTable, warnings: &mut Vec<Warning>) {
    let Some(chosen) = search.chosen() else { return };
    for parameter in &search.parameters {
        let number = |params: &serde_json::Map<String, Value>| params.get(parameter)?.as_f64();
        let values: Option<Vec<f64>> =
            search.tried.iter().map(|tried| number(&tried.params)).collect();
        let (Some(mut values), Some(value)) = (values, number(&chosen.params)) else { continue };
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (Some(&least), Some(&greatest)) = (values.first(), values.last()) else { continue };
        let end = match value {
            value if value == least => SweepEnd::Least,
            value if value == greatest => SweepEnd::Greatest,
            _ => continue,
        };
        let whole = chosen.params.get(parameter).is_some_and(|it| it.is_i64() || it.is_u64());
        if values.len() < FEWEST_VALUES || is_natural(end, whole, least, greatest) {
            continue;
        }
        // The first of equals is chosen, and then the end says nothing.
        let others = search.tried.iter().filter(|tried| number(&tried.params) != Some(value));
        let best = others.filter_map(|tried| tried.metrics.auroc).fold(0.0, f64::max);
        if chosen.metrics.auroc.is_none_or(|auroc| auroc <= best) {
            continue;
        }
        let at = |wanted: f64| {
            let mut tried = search.tried.iter();
            let found = tried.find(|tried| number(&tried.params) == Some(wanted));
            found.and_then(|tried| tried.params.get(parameter)).cloned().unwrap_or_default()
        };
        warnings.push(Warning::SweepEnd {
            label: label.to_owned(),
            parameter: parameter.clone(),
            value: at(value),
            other: at(if end == SweepEnd::Least { greatest } else { least }),
            n_values: values.len(),
            end,
        });
    }
}

/// Whether nothing lies beyond this end: 0 for sizes of steps and the like, 1 for counts, 1 and 100
/// for shares.
fn is_natural(end: SweepEnd, whole: bool, least: f64, greatest: f64) -> bool {
    match end {
        SweepEnd::Least => least == 0.0 || (whole && least == 1.0),
        SweepEnd::Greatest => greatest == 0.0 || (least >= 0.0 && [1.0, 100.0].contains(&greatest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    const ID: &[f32] = &[0.0, 0.25];

    /// The warnings of a search over these values, of which the first is chosen and the `ood`
    /// scores are those of each value.
    fn found(values: &[Value], ood: &[f32], chosen: usize) -> Vec<String> {
        let mut run = TestRun::new();
        run.detector("knn", &[&[0.1, 0.2, 0.2, 0.4]]);
        let scores: Vec<[f32; 1]> = ood.iter().map(|&score| [score]).collect();
        let tried: Vec<[&[f32]; 2]> = scores.iter().map(|ood| [ID, &ood[..]]).collect();
        run.search("knn", &tried.iter().collect::<Vec<_>>(), Some(chosen));
        let search = run.manifest.detectors[0].search.as_mut().unwrap();
        for (combination, value) in search.combinations.iter_mut().zip(values) {
            combination.params.insert("temperature".to_owned(), value.clone());
        }
        run.board().warnings.iter().map(ToString::to_string).collect()
    }

    fn values<T: Into<Value> + Copy>(values: &[T]) -> Vec<Value> {
        values.iter().map(|&value| value.into()).collect()
    }

    #[test]
    fn a_choice_at_the_end_of_a_sweep_says_where_to_go_on() {
        let [warning] = &found(&values(&[50, 100, 200]), &[0.5, 0.125, -1.0], 0)[..] else {
            panic!("one warning expected")
        };
        assert_eq!(
            warning,
            "knn: the search chose temperature = 50, the least of the 3 values that it tried, \
             50 to 200; smaller values may do better: try one with `--set knn.temperature=VALUE`"
        );
        let found = found(&values(&[200.5, 100.0, 50.0]), &[0.5, 0.125, -1.0], 0);
        assert!(found[0].contains("greatest of the 3 values that it tried, 50.0 to 200.5"));
        assert!(found[0].contains("greater values may do better"), "{found:?}");
    }

    #[test]
    fn a_choice_that_says_nothing_is_not_warned_of() {
        let quiet = |values: &[Value], ood: &[f32], chosen: usize| {
            assert_eq!(found(values, ood, chosen), Vec::<String>::new(), "{values:?}");
        };
        // In the middle.
        quiet(&values(&[50, 100, 200]), &[0.125, 0.5, -1.0], 1);
        // Two values have ends alone.
        quiet(&values(&[50, 100]), &[0.5, 0.125], 0);
        // Equal to another value, so that the order decided.
        quiet(&values(&[50, 100, 200]), &[0.5, 0.5, -1.0], 0);
        // Nothing lies beyond.
        quiet(&values(&[0.0, 0.5, 0.7]), &[0.5, 0.125, -1.0], 0);
        quiet(&values(&[1, 2, 3]), &[0.5, 0.125, -1.0], 0);
        quiet(&values(&[0.5, 0.9, 1.0]), &[-1.0, 0.125, 0.5], 2);
        quiet(&values(&[50, 90, 100]), &[-1.0, 0.125, 0.5], 2);
        // No numbers.
        quiet(&values(&["a", "b", "c"]), &[0.5, 0.125, -1.0], 0);
        // A temperature of 1 is no count.
        assert_eq!(found(&values(&[1.0, 10.0, 100.0]), &[0.5, 0.125, -1.0], 0).len(), 1);
    }

    #[test]
    fn what_was_noticed_about_the_input_comes_first() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("a", &[&[0.1, 0.2, 0.2, 0.4], &[0.0]]);
        run.manifest.warnings.push("`x.txt` is not read".to_owned());
        let kinds: Vec<_> = run.board().warnings.iter().map(Warning::kind).collect();
        assert_eq!(kinds, ["input", "below-chance"]);
    }

    #[test]
    fn the_classifiers_accuracy_is_held_against_what_is_stated() {
        let mut run = TestRun::new();
        run.set("id-test", "many", &[0; 1000], &[0; 1000]);
        run.manifest.sets.remove(0);
        run.manifest.classifier.n_classes = Some(2);
        assert!(run.board().warnings.is_empty());
        run.manifest.classifier.stated_accuracy = Some(0.9);
        assert_eq!(run.board().warnings[0].kind(), "accuracy");
    }
}
