//! Pages of runs written by hand.

use oodbench_record::Outcome;

use super::*;
use crate::fixture::TestRun;

fn page(run: &TestRun) -> String {
    render(&run.board())
}

/// What stands between two marks, the first time.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let from = page.find(start).unwrap_or_else(|| panic!("`{start}` expected in\n{page}"));
    let rest = &page[from..];
    &rest[..rest.find(end).expect("an end")]
}

/// Every element is closed, and in the right order.
fn check_elements(page: &str) {
    let void = ["meta", "input", "!doctype"];
    let mut open: Vec<String> = Vec::new();
    let body = between(page, "<!DOCTYPE", "<style>").to_owned()
        + between(page, "</style>", "<script>")
        + &page[page.find("</script>").expect("an end") + "</script>".len()..];
    for tag in body.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split_whitespace().next().expect("a name").to_lowercase();
        match name.strip_prefix('/') {
            Some("style") => {}
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "in `{tag}`"),
            None if tag.ends_with('/') || void.contains(&name.as_str()) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

/// The page without style and script, which are files of their own.
fn without_style(page: &str) -> String {
    page.replace(STYLE, "").replace(SCRIPT, "")
}

#[test]
fn the_page_of_a_small_run_is_the_one_that_was_looked_at() {
    let mut run = TestRun::small();
    run.missing("far", "svhn");
    run.detector("upside-down", &[&[0.1, 0.2, 0.2, 0.4], &[0.0; 3], &[0.9, 1.5]]);
    let id: &[f32] = &[0.0, 0.25];
    run.search("upside-down", &[&[id, &[-1.0]], &[id, &[0.125]], &[id, &[0.5]]], Some(2));
    let (got, expected) = (without_style(&page(&run)), include_str!("small.html"));
    for (nth, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, expected, "line {} of small.html", nth + 1);
    }
    assert_eq!(got.lines().count(), expected.lines().count());
}

#[test]
fn a_row_has_its_numbers_its_bar_and_its_cost() {
    let page = page(&TestRun::small());
    let table = between(&page, "<tbody>", "</tbody>");
    let first: String = table.split("</tr>").next().expect("a row").replace("<td", "\n<td");
    // With equal numbers nothing is the best.
    let expected = r##"
<tbody>
<tr>
<td class="n rank" data-v="1">1</td><th scope="row" class="method"><a href="#m3">mls</a><small>MLS</small></th>
<td class="n bar" data-v="83.333333" style="--w:0.67">83.33</td>
<td class="n" data-v="75.000000">75.00</td>
<td class="n c-aupr" data-v="88.125000">88.12</td>
<td class="n c-aupr" data-v="86.111111">86.11</td>
<td class="n bar" data-v="100.000000" style="--w:1.00">100.00</td>
<td class="n" data-v="0.000000">0.00</td>
<td class="n c-aupr" data-v="100.000000">100.00</td>
<td class="n c-aupr" data-v="100.000000">100.00</td>
<td class="n bar c-set" data-v="83.333333" style="--w:0.67">83.33</td>
<td class="n c-set" data-v="75.000000">75.00</td>
<td class="n bar c-set" data-v="100.000000" style="--w:1.00">100.00</td>
<td class="n c-set" data-v="0.000000">0.00</td>
<td class="n c-cost" data-v="0.250000">0.25</td>
<td class="n c-cost" data-v="6.000000">6.00</td>
<td class="n c-cost" data-v="12.345678">12</td>
<td class="c-cost">cpu</td>
<td class="status" title="">done</td>"##;
    assert_eq!(first, expected.trim_start());
    assert!(
        table.contains("<th scope=\"row\" class=\"method\">faulty<small>"),
        "it has no details"
    );
    assert!(!table.contains("odin"), "what is skipped stands elsewhere");
    check_elements(&page);
}

#[test]
fn the_best_and_the_second_of_a_column_are_marked() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    let id: &[f32] = &[0.1, 0.2, 0.2, 0.4];
    for (label, score) in [("a", 0.5), ("b", 0.3), ("c", 0.15), ("d", 0.3)] {
        run.detector(label, &[id, &[score]]);
    }
    let page = page(&run);
    let marks: Vec<&str> = between(&page, "<tbody>", "</tbody>")
        .split("<tr>")
        .skip(1)
        .map(|row| between(row, "<td class=\"n bar", "\" data-v"))
        .map(|class| class.trim_start_matches("<td class=\"n bar").trim())
        .collect();
    assert_eq!(marks, ["best", "second", "second", ""]);
}

#[test]
fn figures_stand_in_the_page_and_nothing_is_loaded() {
    let page = page(&TestRun::small());
    assert_eq!(page.matches("<details").count(), 3, "mls and msp, and what is skipped");
    assert_eq!(page.matches("class=\"h id\"").count(), 2);
    assert_eq!(page.matches("class=\"roc near d0\" d=\"M34 198").count(), 2, "{page}");
    for foreign in ["http", "src=", "@import", "url(", "<link"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // 4 ID images and 3 OOD ones, of which one is tied with two ID ones.
    let curve = between(&page, "<path class=\"roc near d0\" d=\"M34 198", "\"><title>");
    let expected = "<path class=\"roc near d0\" d=\"M34 198L34 71.3L81.5 71.3L176.5 8L224 8";
    assert_eq!(curve, expected);
}

#[test]
fn names_of_users_and_plugins_are_text_and_nothing_else() {
    let evil = "</title><script>alert('1')</script>\"&\u{202e}";
    let mut run = TestRun::new();
    run.ood("near", "x\"><img onerror=1>", 1);
    run.manifest.title = evil.into();
    run.manifest.classifier.name = evil.into();
    run.manifest.machine.platform = evil.into();
    run.detector("<b>bold</b>", &[&[0.1, 0.2, 0.2, 0.4], &[0.0]]);
    run.failed("faulty", &Outcome::Panicked, evil);
    run.skipped("odin", evil);
    run.missing("far", "<svhn>");
    let page = page(&run);
    check_elements(&page);
    assert_eq!(page.matches("<script").count(), 1, "ours");
    for part in ["<img", "<b>bold", "<svhn", "alert('1')", "\u{202e}"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("&lt;b&gt;bold&lt;/b&gt;"));
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
}

#[test]
fn marks_warnings_and_reasons_are_shown() {
    let mut run = TestRun::small();
    run.missing("far", "svhn");
    run.manifest.sets[0].of_images = 10;
    run.manifest.limit = Some(4);
    run.detector("upside-down", &[&[0.1, 0.2, 0.2, 0.4], &[0.0; 3], &[0.9, 1.5]]);
    let page = page(&run);
    for part in [
        "<b>incomplete: missing far/svhn.</b>",
        "<b>limited to 4 images a set: not comparable.</b>",
        "<li>limited to 4 images a set: not comparable <span class=\"remedy\">run again without <code>--limit</code></span></li>",
        "<li><b>upside-down</b> AUROC 0.00 % on near/letters, worse than guessing",
        "far/svhn is missing: nothing at <code>data/svhn</code>",
        "<li><b>faulty</b> failed: panicked: index out of bounds</li>",
        "<span>Far-OOD*</span> AUROC ↑",
        "4 of 10",
    ] {
        assert!(page.contains(part), "`{part}` expected in\n{page}");
    }
    check_elements(&page);
}

#[test]
fn a_search_shows_the_best_of_many_combinations() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    run.detector("msp", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
    let id: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let ood: Vec<[f32; 1]> = (0..100).map(|i| [i as f32 + 0.5]).collect();
    let tried: Vec<[&[f32]; 2]> = ood.iter().map(|ood| [&id[..], &ood[..]]).collect();
    run.search("msp", &tried.iter().collect::<Vec<_>>(), Some(99));
    let page = page(&run);
    let table = between(&page, "<details class=\"search\">", "</details>");
    assert!(table.contains("Search: 100 combinations on id-val/digits and ood-val/words"));
    assert_eq!(table.matches("<tr").count(), 1 + 40);
    assert!(
        table.contains("<tr class=\"chosen\"><td>99</td><td class=\"n\">100.00</td>"),
        "{table}"
    );
    assert!(!table.contains("<td>59</td>") && table.contains("<td>60</td>"));
    check_elements(&page);
}

#[test]
fn a_run_without_any_scores_has_a_page() {
    let mut run = TestRun::new();
    run.skipped("odin", "needs more");
    let page = page(&run);
    assert!(page.contains("<li><b>odin</b> skipped: needs more</li>"));
    assert!(!page.contains("<figure"));
    check_elements(&page);
}

#[test]
fn a_page_of_many_images_is_as_small_as_one_of_few() {
    let size = |n: usize| {
        let mut run = TestRun::new();
        run.set("id-test", "many", &vec![0; n], &vec![0; n]);
        run.manifest.sets.remove(0);
        run.ood("near", "letters", n);
        let scores = |shift: f64| -> Vec<f32> {
            // Spread as numbers that look random.
            (0..n).map(|i| ((i as f64 * 0.618_034).fract().powi(2) + shift) as f32).collect()
        };
        run.detector("a", &[&scores(0.0), &scores(0.2)]);
        page(&run).len()
    };
    let (few, many) = (size(500), size(50_000));
    assert!(many < few + 2000, "{few} {many}");
}
