//! Figures as inline SVG: histograms of scores, ROC curves, quality against cost. Colours come from
//! the style sheet by class, so that figures follow the reader's choice of light or dark.
//!
//! Figures hold what can be seen and no more, however many images there are: a histogram has
//! [`BINS`] bins, and a curve loses the points that lie within a fraction of a pixel of the rest.

use oodbench_metrics::{Positive, RankedScores};

use super::table::compact;
use super::{escape, put};

/// Bins of a histogram.
const BINS: usize = 48;

/// The share of the scores on either side that goes into the outermost bins.
const TAIL: f64 = 0.005;

/// How far a curve may be off what it would be with every point, in pixels.
const TOLERANCE: f64 = 0.3;

/// Where in a figure the axes lie.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    /// The place of a point, both coordinates from 0 to 1, y upwards.
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.left + x * self.width, self.top + (1.0 - y) * self.height)
    }

    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(label))
}

/// A number of an SVG: a tenth of a pixel is enough.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    for (x, y) in points {
        let command = if d.is_empty() { 'M' } else { 'L' };
        put!(&mut d, "{command}{} {}", px(x), px(y));
    }
    d
}

/// A score as a tick: about three digits.
fn tick(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else {
        let decimals = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
        format!("{value:.decimals$}")
    }
}

/// The scores of the sets of a group.
pub(super) type Group<'a> = Vec<&'a [f32]>;

/// How the scores of ID, near-OOD and far-OOD images are spread. In the mean over a group each set
/// counts the same. `None` where one side has no images.
pub(super) fn histogram(id: &Group<'_>, near: &Group<'_>, far: &Group<'_>) -> Option<String> {
    let frame = Frame { left: 10.0, top: 12.0, width: 380.0, height: 150.0 };
    let id = id.concat();
    let has_images = |group: &Group<'_>| group.iter().any(|set| !set.is_empty());
    if id.is_empty() || !(has_images(near) || has_images(far)) {
        return None;
    }
    let all: Vec<f32> = near.iter().chain(far).flat_map(|set| set.iter()).copied().collect();
    // The sides one by one, so that a large one does not push a small one out of the picture.
    let ((a, b), (c, d)) = (bulk(&id), bulk(&all));
    let (low, high) = (a.min(c), b.max(d));
    // Scores that are all the same still have a place, in the middle.
    let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
    let groups = [
        ("id", density(&[&id], low, high)),
        ("near", density(near, low, high)),
        ("far", density(far, low, high)),
    ];
    let greatest = groups.iter().flat_map(|(_, bins)| bins.iter().flatten()).copied();
    let greatest = greatest.fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = open(400.0, 196.0, "Histogram of the scores of ID, near-OOD and far-OOD images");
    for (class, bins) in &groups {
        let Some(bins) = bins else { continue };
        let steps = bins.iter().enumerate().flat_map(|(nth, share)| {
            let y = share / greatest;
            [nth, nth + 1].map(|edge| frame.at((edge as f64 / BINS as f64, y)))
        });
        let ends = |x| std::iter::once(frame.at((x, 0.0)));
        let d = path(ends(0.0).chain(steps).chain(ends(1.0)));
        put!(&mut svg, "<path class=\"h {class}\" d=\"{d}\"/>");
    }
    let threshold = quantile(&id, 0.95);
    let x = (threshold - low) / (high - low);
    if (0.0..=1.0).contains(&x) {
        let (x, _) = frame.at((x, 0.0));
        let (y, bottom) = (px(frame.top - 4.0), px(frame.bottom()));
        put!(
            &mut svg,
            "<path class=\"mark\" d=\"M{} {y}V{bottom}\"><title>95 % of the ID images lie left of {}</title></path>",
            px(x),
            tick(threshold)
        );
    }
    axis(&mut svg, &frame);
    for (x, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let ((place, y), value) = (frame.at((x, 0.0)), low + x * (high - low));
        let (place, y) = (px(place), px(y + 14.0));
        put!(
            &mut svg,
            "<text x=\"{place}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
            tick(value)
        );
    }
    put!(
        &mut svg,
        "<text class=\"name\" x=\"{}\" y=\"192\" text-anchor=\"middle\">score, more out-of-distribution →</text></svg>",
        px(frame.left + frame.width / 2.0)
    );
    Some(svg)
}

/// Between which scores all but the tails lie.
fn bulk(scores: &[f32]) -> (f64, f64) {
    (quantile(scores, TAIL), quantile(scores, 1.0 - TAIL))
}

/// The score below which about this share lies; there is at least one.
fn quantile(scores: &[f32], share: f64) -> f64 {
    let mut scores = scores.to_vec();
    let nth = (share * (scores.len() - 1) as f64).round() as usize;
    f64::from(*scores.select_nth_unstable_by(nth, f32::total_cmp).1)
}

/// The share of the images in each bin, in the mean over the sets; `None` without images.
fn density(sets: &[&[f32]], low: f64, high: f64) -> Option<[f64; BINS]> {
    let sets: Vec<&&[f32]> = sets.iter().filter(|set| !set.is_empty()).collect();
    let mut bins = [0.0; BINS];
    for set in &sets {
        for &score in set.iter() {
            let place = (f64::from(score) - low) / (high - low) * BINS as f64;
            // What lies beyond goes to the outermost bins.
            bins[(place.max(0.0) as usize).min(BINS - 1)] += 1.0 / (set.len() * sets.len()) as f64;
        }
    }
    (!sets.is_empty()).then_some(bins)
}

fn axis(svg: &mut String, frame: &Frame) {
    let [left, bottom, right] = [frame.left, frame.bottom(), frame.right()].map(px);
    put!(svg, "<path class=\"axis\" d=\"M{left} {bottom}H{right}\"/>");
}

/// A curve of a ROC figure.
pub(super) struct Curve<'a> {
    /// Classes of the style sheet.
    pub(super) class: String,
    pub(super) name: &'a str,
    pub(super) scores: &'a [f32],
}

/// ROC curves of OOD sets against the ID images, OOD positive.
pub(super) fn roc(id: &[f32], curves: &[Curve<'_>]) -> Option<String> {
    let frame = Frame { left: 34.0, top: 8.0, width: 190.0, height: 190.0 };
    let mut svg =
        open(242.0, 236.0, "ROC curves, with the out-of-distribution images as positives");
    let [left, top, right, bottom] = [frame.left, frame.top, frame.right(), frame.bottom()].map(px);
    put!(
        &mut svg,
        "<path class=\"grid\" d=\"M{left} {bottom}L{right} {top}\"/><path class=\"mark\" d=\"M{left} {y}H{right}\"><title>95 % of the OOD images are detected</title></path>",
        y = px(frame.at((0.0, 0.95)).1)
    );
    let mut is_empty = true;
    for curve in curves {
        let ranked = RankedScores::new(id, curve.scores).ok()?;
        let points = ranked.roc(Positive::Ood).map(|point| frame.at((point.fpr, point.tpr)));
        let points = simplified(&points.collect::<Vec<_>>());
        if points.is_empty() {
            continue;
        }
        is_empty = false;
        let (class, name) = (&curve.class, escape(curve.name));
        let d = path(points);
        put!(&mut svg, "<path class=\"roc {class}\" d=\"{d}\"><title>{name}</title></path>");
    }
    put!(&mut svg, "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>");
    for (value, text) in [(0.0, "0"), (0.5, "50"), (1.0, "100")] {
        let ((x, _), (_, y)) = (frame.at((value, 0.0)), frame.at((0.0, value)));
        put!(
            &mut svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{text}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{text}</text>",
            px(x),
            px(frame.bottom() + 14.0),
            px(frame.left - 5.0),
            px(y + 4.0)
        );
    }
    let middle = px(frame.left + frame.width / 2.0);
    put!(
        &mut svg,
        "<text class=\"name\" x=\"{middle}\" y=\"231\" text-anchor=\"middle\">% of ID images refused</text>"
    );
    let middle = px(frame.top + frame.height / 2.0);
    put!(
        &mut svg,
        "<text class=\"name\" transform=\"translate(10 {middle}) rotate(-90)\" text-anchor=\"middle\">% of OOD images detected</text></svg>"
    );
    (!is_empty).then_some(svg)
}

/// The curve without points that change it by less than can be seen (Ramer, Douglas and Peucker).
fn simplified(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut coarse: Vec<(f64, f64)> = Vec::new();
    for (nth, &(x, y)) in points.iter().enumerate() {
        let is_far =
            coarse.last().is_none_or(|last| (x - last.0).abs() + (y - last.1).abs() >= TOLERANCE);
        if is_far || nth + 1 == points.len() {
            coarse.push((x, y));
        }
    }
    if coarse.len() < 3 {
        return coarse;
    }
    let mut keep = vec![false; coarse.len()];
    let last = coarse.len() - 1;
    (keep[0], keep[last]) = (true, true);
    let mut parts = vec![(0, last)];
    while let Some((start, end)) = parts.pop() {
        let distance = |nth: usize| distance(coarse[nth], coarse[start], coarse[end]);
        let farthest = (start + 1..end).max_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        if let Some(nth) = farthest.filter(|&nth| distance(nth) > TOLERANCE) {
            keep[nth] = true;
            parts.extend([(start, nth), (nth, end)]);
        }
    }
    coarse.into_iter().zip(keep).filter_map(|(point, keep)| keep.then_some(point)).collect()
}

/// How far a point is from a segment.
fn distance(p: (f64, f64), a: (f64, f64), b: (f64, f64)) -> f64 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let length = dx.hypot(dy);
    if length == 0.0 {
        return (p.0 - a.0).hypot(p.1 - a.1);
    }
    ((p.0 - a.0) * dy - (p.1 - a.1) * dx).abs() / length
}

/// A method in the figure of quality against cost.
pub(super) struct Priced<'a> {
    pub(super) name: &'a str,
    /// Where its details are.
    pub(super) link: String,
    pub(super) images_per_s: f64,
    pub(super) auroc: f64,
}

/// AUROC against images per second. Methods that nothing is better than in both are joined by a line
/// and named; the others have their names in tooltips. `None` for fewer than two methods.
pub(super) fn against_cost(methods: &[Priced<'_>], what: &str) -> Option<String> {
    let frame = Frame { left: 44.0, top: 14.0, width: 640.0, height: 250.0 };
    if methods.len() < 2 {
        return None;
    }
    let logs = methods.iter().map(|method| method.images_per_s.log10());
    let (slow, fast) = logs.fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let (slow, fast) = (slow.floor(), fast.ceil().max(slow.floor() + 1.0));
    let worst = methods.iter().map(|method| method.auroc).fold(1.0, f64::min);
    let best = methods.iter().map(|method| method.auroc).fold(0.0, f64::max);
    // Twentieths, with room for a name above the best.
    let (low, high) = ((worst * 20.0).floor() / 20.0, (best * 20.0).ceil() / 20.0);
    let (low, high) = if high > low { (low, high) } else { (low - 0.05, high + 0.05) };
    let place = |method: &Priced<'_>| {
        let x = (method.images_per_s.log10() - slow) / (fast - slow);
        frame.at((x, (method.auroc - low) / (high - low)))
    };
    let mut svg = open(720.0, 306.0, &format!("{what} AUROC against images per second"));
    let n_lines = ((high - low) * 20.0).round() as usize;
    for nth in (0..=n_lines).step_by(n_lines.div_ceil(10).max(1)) {
        let value = low + nth as f64 / 20.0;
        let (_, y) = frame.at((0.0, nth as f64 / n_lines.max(1) as f64));
        put!(
            &mut svg,
            "<path class=\"grid\" d=\"M{} {y}H{}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.0}</text>",
            px(frame.left),
            px(frame.right()),
            px(frame.left - 6.0),
            px(y + 4.0),
            100.0 * value,
            y = px(y)
        );
    }
    let decades = (fast - slow) as i32;
    for nth in 0..=decades {
        let (x, y) = frame.at((f64::from(nth) / f64::from(decades), 0.0));
        put!(
            &mut svg,
            "<path class=\"axis\" d=\"M{x} {}v5\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            px(y),
            px(y + 18.0),
            power(slow as i32 + nth),
            x = px(x)
        );
    }
    axis(&mut svg, &frame);
    put!(
        &mut svg,
        "<text class=\"name\" x=\"{}\" y=\"302\" text-anchor=\"middle\">images per second, faster →</text><text class=\"name\" transform=\"translate(10 {}) rotate(-90)\" text-anchor=\"middle\">{} AUROC, %</text>",
        px(frame.left + frame.width / 2.0),
        px(frame.top + frame.height / 2.0),
        escape(what)
    );
    let is_beaten = |method: &Priced<'_>| {
        methods.iter().any(|other| {
            (other.auroc > method.auroc && other.images_per_s >= method.images_per_s)
                || (other.auroc >= method.auroc && other.images_per_s > method.images_per_s)
        })
    };
    let mut front: Vec<&Priced<'_>> = methods.iter().filter(|it| !is_beaten(it)).collect();
    front.sort_by(|a, b| a.images_per_s.total_cmp(&b.images_per_s));
    let line = path(front.iter().map(|method| place(method)));
    put!(&mut svg, "<path class=\"front\" d=\"{line}\"/>");
    for method in methods {
        let ((x, y), name) = (place(method), escape(method.name));
        let class = if is_beaten(method) { "dot" } else { "dot best" };
        put!(
            &mut svg,
            "<a href=\"#{}\"><circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"4\"><title>{name}: {:.2} %, {} images/s</title></circle></a>",
            method.link,
            px(x),
            px(y),
            100.0 * method.auroc,
            compact(method.images_per_s)
        );
    }
    // Those of the front first, then the others as far as there is room.
    let mut taken: Vec<Label> = Vec::new();
    let others = methods.iter().filter(|method| is_beaten(method));
    for method in front.into_iter().chain(others) {
        let class = if is_beaten(method) { "label soft" } else { "label" };
        let (label, (x, y)) = (Label::new(method.name, place(method), &frame), place(method));
        let hides = |other: &Priced<'_>| {
            let (a, b) = place(other);
            (a, b) != (x, y) && label.covers(a, b)
        };
        if taken.iter().any(|other| other.overlaps(&label))
            || (is_beaten(method) && methods.iter().any(hides))
        {
            continue;
        }
        let (anchor, x) = if label.is_left { ("end", x - 6.0) } else { ("start", x + 6.0) };
        put!(
            &mut svg,
            "<text class=\"{class}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            px(x),
            px(label.bottom),
            escape(method.name)
        );
        taken.push(label);
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// The room of a name beside its point.
struct Label {
    left: f64,
    right: f64,
    bottom: f64,
    /// Whether it stands left of its point, which it does where there is no room on the right.
    is_left: bool,
}

impl Label {
    const HEIGHT: f64 = 11.0;

    fn new(name: &str, (x, y): (f64, f64), frame: &Frame) -> Self {
        // About so many pixels a letter.
        let width = 6.0 + 6.4 * name.chars().count() as f64;
        let is_left = x + width > frame.right() + 30.0;
        let (left, right) = if is_left { (x - width, x) } else { (x, x + width) };
        Self { left, right, bottom: y - 5.0, is_left }
    }

    fn covers(&self, x: f64, y: f64) -> bool {
        let is_beside = (self.bottom - Self::HEIGHT - 3.0..self.bottom + 3.0).contains(&y);
        is_beside && (self.left - 3.0..self.right + 3.0).contains(&x)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let is_above_or_below = (self.bottom - other.bottom).abs() >= Self::HEIGHT;
        !is_above_or_below && self.left < other.right && other.left < self.right
    }
}

/// A power of ten for people.
fn power(exponent: i32) -> String {
    match exponent {
        0 => "1".to_owned(),
        1..=2 => format!("{}", 10_u32.pow(exponent as u32)),
        3..=5 => format!("{} k", 10_u32.pow(exponent as u32 - 3)),
        6..=8 => format!("{} M", 10_u32.pow(exponent as u32 - 6)),
        -3..=-1 => format!("{}", 10_f64.powi(exponent)),
        _ => format!("1e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_curve_keeps_its_ends_alone() {
        let line: Vec<(f64, f64)> =
            (0..1000).map(|i| (f64::from(i) / 5.0, f64::from(i) / 7.0)).collect();
        assert_eq!(simplified(&line), [line[0], line[999]]);
        let corner = [(0.0, 0.0), (0.0, 100.0), (100.0, 100.0)];
        assert_eq!(simplified(&corner), corner);
        assert_eq!(simplified(&[]), []);
    }

    #[test]
    fn a_simplified_curve_is_nowhere_far_off() {
        let curve: Vec<(f64, f64)> = (0..=5000)
            .map(|i| (f64::from(i) / 25.0, 200.0 * (f64::from(i) / 5000.0).powf(0.1)))
            .collect();
        let simple = simplified(&curve);
        assert!(simple.len() < 60, "{}", simple.len());
        for &point in &curve {
            let nearest = simple.windows(2).map(|ends| distance(point, ends[0], ends[1]));
            let nearest = nearest.fold(f64::MAX, f64::min);
            assert!(nearest <= 2.0 * TOLERANCE, "{point:?} is {nearest} off");
        }
    }

    #[test]
    fn shares_of_a_histogram_add_up_to_one() {
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..500).map(|i| i as f32).collect(), vec![-1e30, 3.0, f32::MAX]);
        let bins = density(&[&a, &b, &[]], 0.0, 100.0).unwrap();
        assert!((bins.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(density(&[&[]], 0.0, 1.0).is_none());
    }

    #[test]
    fn figures_of_few_equal_or_huge_scores_hold_no_nan() {
        for (id, ood) in [
            (vec![1.0_f32], vec![1.0_f32]),
            (vec![0.0; 9], vec![f32::MAX, f32::MIN]),
            (vec![-1e-30, 1e-30], vec![0.0]),
        ] {
            let figure = histogram(&vec![&id], &vec![&ood], &vec![]).unwrap();
            let curve = Curve { class: "near".into(), name: "x", scores: &ood };
            let roc = roc(&id, &[curve]).unwrap();
            assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
            assert!(!roc.contains("NaN"), "{roc}");
        }
        assert_eq!(histogram(&vec![&[]], &vec![&[1.0]], &vec![]), None);
        assert!(roc(&[], &[]).is_none());
    }

    #[test]
    fn only_what_nothing_beats_is_joined_and_named() {
        let method =
            |name, images_per_s, auroc| Priced { name, link: "m".into(), images_per_s, auroc };
        let methods =
            [method("<slow>", 10.0, 0.9), method("beaten", 9.0, 0.8), method("fast", 1e5, 0.7)];
        let svg = against_cost(&methods, "near-OOD").unwrap();
        assert!(svg.contains("&lt;slow&gt;</text>") && svg.contains(">fast</text>"), "{svg}");
        assert!(svg.contains("label soft") && svg.contains(">beaten</text>"), "{svg}");
        assert!(svg.contains("<title>beaten: 80.00 %"), "{svg}");
        assert!(against_cost(&methods[..1], "near-OOD").is_none());
    }

    #[test]
    fn ticks_have_about_three_digits() {
        let shown = [0.0, 1.0, -12.345, 0.012345, 123456.0, 1e-9].map(tick);
        assert_eq!(shown, ["0", "1.00", "-12.3", "0.0123", "1.2e5", "1.0e-9"]);
    }
}
