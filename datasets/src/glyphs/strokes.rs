//! The alphabet as strokes: digits and capital letters, several shapes each.
//!
//! Coordinates lie in a unit square, x to the right and y down. O and I are left out, because
//! as strokes they are the digits 0 and 1.

use libm::{cos, sin};

/// A point of the unit square.
pub(super) type Point = (f64, f64);

/// One movement of the pen.
pub(super) enum Stroke {
    /// Straight lines through the points.
    Line(&'static [Point]),
    /// Part of an ellipse: centre, radii, and the angles in degrees, clockwise from the right.
    Arc(Point, Point, (f64, f64)),
}

use Stroke::{Arc, Line};

/// A character: its shapes, of which one is drawn.
pub(super) struct Glyph {
    /// The character; its index in [`DIGITS`] is the class.
    #[cfg_attr(not(test), expect(dead_code, reason = "names the glyph for the reader and tests"))]
    pub(super) name: char,
    pub(super) shapes: &'static [&'static [Stroke]],
}

const fn glyph(name: char, shapes: &'static [&'static [Stroke]]) -> Glyph {
    Glyph { name, shapes }
}

/// The ten classes.
pub(super) const DIGITS: &[Glyph] = &[
    glyph(
        '0',
        &[
            &[Arc((0.5, 0.5), (0.34, 0.48), (0.0, 360.0))],
            &[Arc((0.5, 0.5), (0.26, 0.48), (0.0, 360.0))],
            &[Arc((0.5, 0.5), (0.36, 0.48), (0.0, 360.0)), Line(&[(0.7, 0.2), (0.3, 0.8)])],
        ],
    ),
    glyph(
        '1',
        &[
            &[Line(&[(0.3, 0.24), (0.56, 0.03), (0.56, 0.97)])],
            &[Line(&[(0.5, 0.03), (0.5, 0.97)])],
            &[
                Line(&[(0.28, 0.24), (0.52, 0.03), (0.52, 0.97)]),
                Line(&[(0.25, 0.97), (0.79, 0.97)]),
            ],
        ],
    ),
    glyph(
        '2',
        &[
            &[
                Arc((0.5, 0.31), (0.33, 0.28), (190.0, 400.0)),
                Line(&[(0.753, 0.49), (0.16, 0.97), (0.86, 0.97)]),
            ],
            &[
                Arc((0.47, 0.29), (0.33, 0.26), (200.0, 410.0)),
                Line(&[(0.682, 0.489), (0.2, 0.95)]),
                Arc((0.55, 1.1), (0.38, 0.22), (205.0, 320.0)),
            ],
        ],
    ),
    glyph(
        '3',
        &[
            &[
                Arc((0.46, 0.27), (0.3, 0.24), (205.0, 450.0)),
                Arc((0.46, 0.74), (0.36, 0.24), (270.0, 515.0)),
            ],
            &[
                Line(&[(0.15, 0.03), (0.82, 0.03), (0.44, 0.42)]),
                Arc((0.45, 0.7), (0.37, 0.28), (270.0, 515.0)),
            ],
        ],
    ),
    glyph(
        '4',
        &[
            &[Line(&[(0.67, 0.97), (0.67, 0.03), (0.08, 0.68), (0.92, 0.68)])],
            &[Line(&[(0.22, 0.03), (0.16, 0.56), (0.88, 0.56)]), Line(&[(0.7, 0.15), (0.7, 0.97)])],
        ],
    ),
    glyph(
        '5',
        &[
            &[
                Line(&[(0.82, 0.03), (0.24, 0.03), (0.2, 0.46)]),
                Arc((0.46, 0.67), (0.37, 0.3), (225.0, 510.0)),
            ],
            &[
                Line(&[(0.78, 0.03), (0.26, 0.03), (0.26, 0.42), (0.5, 0.4)]),
                Arc((0.48, 0.68), (0.34, 0.28), (275.0, 500.0)),
            ],
        ],
    ),
    glyph(
        '6',
        &[
            &[
                Arc((0.5, 0.69), (0.34, 0.28), (0.0, 360.0)),
                Line(&[(0.74, 0.04), (0.42, 0.2), (0.22, 0.46), (0.16, 0.69)]),
            ],
            &[
                Arc((0.52, 0.67), (0.33, 0.3), (0.0, 360.0)),
                Arc((0.82, 0.66), (0.63, 0.62), (180.0, 262.0)),
            ],
        ],
    ),
    glyph(
        '7',
        &[
            &[Line(&[(0.12, 0.03), (0.87, 0.03), (0.4, 0.97)])],
            &[Line(&[(0.12, 0.03), (0.87, 0.03), (0.42, 0.97)]), Line(&[(0.36, 0.5), (0.82, 0.5)])],
            &[Line(&[(0.13, 0.2), (0.13, 0.03), (0.86, 0.03), (0.5, 0.5), (0.46, 0.97)])],
        ],
    ),
    glyph(
        '8',
        &[
            &[
                Arc((0.5, 0.26), (0.28, 0.23), (0.0, 360.0)),
                Arc((0.5, 0.73), (0.35, 0.24), (0.0, 360.0)),
            ],
            &[
                Arc((0.5, 0.28), (0.31, 0.25), (0.0, 360.0)),
                Arc((0.5, 0.75), (0.31, 0.22), (0.0, 360.0)),
            ],
        ],
    ),
    glyph(
        '9',
        &[
            &[
                Arc((0.5, 0.31), (0.34, 0.28), (0.0, 360.0)),
                Line(&[(0.84, 0.31), (0.78, 0.56), (0.56, 0.82), (0.28, 0.97)]),
            ],
            &[Arc((0.46, 0.31), (0.32, 0.28), (0.0, 360.0)), Line(&[(0.78, 0.1), (0.78, 0.97)])],
        ],
    ),
];

/// Near-OOD: capital letters.
pub(super) const LETTERS: &[Glyph] = &[
    glyph(
        'A',
        &[&[Line(&[(0.08, 0.97), (0.5, 0.03), (0.92, 0.97)]), Line(&[(0.25, 0.62), (0.75, 0.62)])]],
    ),
    glyph(
        'B',
        &[&[
            Line(&[(0.2, 0.03), (0.2, 0.97)]),
            Line(&[(0.2, 0.03), (0.48, 0.03)]),
            Arc((0.48, 0.26), (0.28, 0.23), (270.0, 450.0)),
            Line(&[(0.2, 0.49), (0.5, 0.49)]),
            Arc((0.5, 0.73), (0.33, 0.24), (270.0, 450.0)),
            Line(&[(0.2, 0.97), (0.5, 0.97)]),
        ]],
    ),
    glyph('C', &[&[Arc((0.52, 0.5), (0.4, 0.47), (45.0, 315.0))]]),
    glyph(
        'D',
        &[&[
            Line(&[(0.35, 0.03), (0.18, 0.03), (0.18, 0.97), (0.35, 0.97)]),
            Arc((0.35, 0.5), (0.5, 0.47), (270.0, 450.0)),
        ]],
    ),
    glyph(
        'E',
        &[&[
            Line(&[(0.82, 0.03), (0.2, 0.03), (0.2, 0.97), (0.84, 0.97)]),
            Line(&[(0.2, 0.48), (0.7, 0.48)]),
        ]],
    ),
    glyph(
        'F',
        &[&[Line(&[(0.84, 0.03), (0.22, 0.03), (0.22, 0.97)]), Line(&[(0.22, 0.48), (0.7, 0.48)])]],
    ),
    glyph(
        'G',
        &[&[
            Arc((0.52, 0.5), (0.4, 0.47), (10.0, 315.0)),
            Line(&[(0.56, 0.56), (0.92, 0.56), (0.92, 0.75)]),
        ]],
    ),
    glyph(
        'H',
        &[&[
            Line(&[(0.16, 0.03), (0.16, 0.97)]),
            Line(&[(0.84, 0.03), (0.84, 0.97)]),
            Line(&[(0.16, 0.49), (0.84, 0.49)]),
        ]],
    ),
    glyph(
        'J',
        &[&[Line(&[(0.7, 0.03), (0.7, 0.7)]), Arc((0.43, 0.7), (0.27, 0.27), (0.0, 180.0))]],
    ),
    glyph(
        'K',
        &[&[
            Line(&[(0.18, 0.03), (0.18, 0.97)]),
            Line(&[(0.82, 0.03), (0.2, 0.58)]),
            Line(&[(0.4, 0.42), (0.86, 0.97)]),
        ]],
    ),
    glyph('L', &[&[Line(&[(0.22, 0.03), (0.22, 0.97), (0.84, 0.97)])]]),
    glyph('M', &[&[Line(&[(0.08, 0.97), (0.14, 0.03), (0.5, 0.66), (0.86, 0.03), (0.92, 0.97)])]]),
    glyph('N', &[&[Line(&[(0.16, 0.97), (0.16, 0.03), (0.84, 0.97), (0.84, 0.03)])]]),
    glyph(
        'P',
        &[&[
            Line(&[(0.2, 0.97), (0.2, 0.03), (0.52, 0.03)]),
            Arc((0.52, 0.28), (0.31, 0.25), (270.0, 450.0)),
            Line(&[(0.52, 0.53), (0.2, 0.53)]),
        ]],
    ),
    glyph(
        'Q',
        &[&[Arc((0.48, 0.48), (0.38, 0.45), (0.0, 360.0)), Line(&[(0.6, 0.66), (0.9, 0.98)])]],
    ),
    glyph(
        'R',
        &[&[
            Line(&[(0.2, 0.97), (0.2, 0.03), (0.52, 0.03)]),
            Arc((0.52, 0.28), (0.31, 0.25), (270.0, 450.0)),
            Line(&[(0.2, 0.53), (0.52, 0.53), (0.86, 0.97)]),
        ]],
    ),
    glyph(
        'S',
        &[&[
            Arc((0.5, 0.27), (0.32, 0.24), (90.0, 340.0)),
            Arc((0.5, 0.74), (0.34, 0.23), (270.0, 520.0)),
        ]],
    ),
    glyph('T', &[&[Line(&[(0.1, 0.03), (0.9, 0.03)]), Line(&[(0.5, 0.03), (0.5, 0.97)])]]),
    glyph(
        'U',
        &[&[
            Line(&[(0.16, 0.03), (0.16, 0.62)]),
            Arc((0.5, 0.62), (0.34, 0.35), (0.0, 180.0)),
            Line(&[(0.84, 0.62), (0.84, 0.03)]),
        ]],
    ),
    glyph('V', &[&[Line(&[(0.1, 0.03), (0.5, 0.97), (0.9, 0.03)])]]),
    glyph('W', &[&[Line(&[(0.05, 0.03), (0.27, 0.97), (0.5, 0.3), (0.73, 0.97), (0.95, 0.03)])]]),
    glyph('X', &[&[Line(&[(0.12, 0.03), (0.88, 0.97)]), Line(&[(0.88, 0.03), (0.12, 0.97)])]]),
    glyph(
        'Y',
        &[&[Line(&[(0.1, 0.03), (0.5, 0.5), (0.9, 0.03)]), Line(&[(0.5, 0.5), (0.5, 0.97)])]],
    ),
    glyph('Z', &[&[Line(&[(0.14, 0.03), (0.86, 0.03), (0.14, 0.97), (0.86, 0.97)])]]),
];

impl Stroke {
    /// The stroke as a chain of points, close enough together to bend.
    pub(super) fn points(&self) -> Vec<Point> {
        match *self {
            Line(points) => {
                let mut chain = vec![points[0]];
                for pair in points.windows(2) {
                    let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
                    chain.extend((1..=4).map(|i| {
                        let t = f64::from(i) / 4.0;
                        (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)
                    }));
                }
                chain
            }
            Arc((cx, cy), (rx, ry), (from, to)) => {
                let n = 4 + ((to - from) / 18.0) as usize;
                (0..=n)
                    .map(|i| {
                        let angle = (from + (to - from) * i as f64 / n as f64).to_radians();
                        (cx + rx * cos(angle), cy + ry * sin(angle))
                    })
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stroke_lies_near_the_unit_square() {
        for glyph in DIGITS.iter().chain(LETTERS) {
            for stroke in glyph.shapes.iter().copied().flatten() {
                for (x, y) in stroke.points() {
                    let near = -0.1..=1.1;
                    assert!(near.contains(&x) && near.contains(&y), "{}: {x} {y}", glyph.name);
                }
            }
        }
    }

    #[test]
    fn the_classes_are_the_digits_in_order() {
        let names: String = DIGITS.iter().map(|glyph| glyph.name).collect();
        assert_eq!(names, "0123456789");
        assert!(LETTERS.iter().all(|glyph| !"OI".contains(glyph.name)));
    }
}
