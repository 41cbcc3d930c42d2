//! The adaptive Runge-Kutta method of order 5(4) of Dormand and Prince, with the rules of scipy's
//! `solve_ivp(method="RK45")`: the same first step, the same error norm, the same accepted steps.
//!
//! Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980. The first step is that
//! of Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section II.4. The
//! absolute and the relative tolerance are one number, as the reference has it.

use candle_core::Result;

/// The derivative at a time and a state.
pub(super) type Derivative<'a> = dyn FnMut(f64, &[f64]) -> Result<Vec<f64>> + 'a;

/// Where in a step the stages lie.
const NODES: [f64; 6] = [0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0];

/// What the stages are made of, row by row.
const STAGES: [&[f64]; 6] = [
    &[],
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
];

/// The weights of order 5.
const WEIGHTS: [f64; 6] =
    [35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0];

/// The difference between the orders; the last is for the derivative at the end of the step.
const ERROR: [f64; 7] = [
    -71.0 / 57600.0,
    0.0,
    71.0 / 16695.0,
    -71.0 / 1920.0,
    17253.0 / 339200.0,
    -22.0 / 525.0,
    1.0 / 40.0,
];

const SAFETY: f64 = 0.9;
const LEAST_FACTOR: f64 = 0.2;
const GREATEST_FACTOR: f64 = 10.0;
/// The error grows with the fifth power of the step.
const EXPONENT: f64 = 1.0 / 5.0;

/// Integrates from the first time to the second, whichever is greater; `visit` is called after
/// each accepted step with its time and state. Equal times give the state back.
///
/// # Errors
/// What the derivative says; steps that became too small for `f64`, as they do where the
/// derivative is not finite.
pub(super) fn integrate(
    derivative: &mut Derivative<'_>,
    (start, end): (f64, f64),
    mut y: Vec<f64>,
    tolerance: f64,
    visit: &mut dyn FnMut(f64, &[f64]) -> Result<()>,
) -> Result<Vec<f64>> {
    if start == end || y.is_empty() {
        return Ok(y);
    }
    // scipy raises the relative tolerance where `f64` could not follow.
    let (absolute, relative) = (tolerance, tolerance.max(100.0 * f64::EPSILON));
    let sign = (end - start).signum();
    let mut t = start;
    let mut slope = derivative(t, &y)?;
    let scale: Vec<f64> = y.iter().map(|y| absolute + y.abs() * relative).collect();
    let mut length = first_step(derivative, (start, end), &y, &slope, &scale)?;
    while t != end {
        let least = 10.0 * (next_after(t, sign) - t).abs();
        length = length.max(least);
        let mut rejected = false;
        loop {
            // Not a number is too small as well.
            if length.is_nan() || length < least {
                candle_core::bail!(
                    "adaptive step at time {t} expected an error within the tolerance of {tolerance}, got none with steps of {least:e}"
                );
            }
            let mut t_next = t + length * sign;
            if (t_next - end) * sign > 0.0 {
                t_next = end;
            }
            let step = t_next - t;
            length = step.abs();
            let (y_next, stages) = attempt(derivative, t, &y, &slope, step)?;
            let error = rms(y.len(), |i| {
                let error: f64 = ERROR.iter().zip(&stages).map(|(e, k)| e * k[i]).sum();
                let scale = absolute + y[i].abs().max(y_next[i].abs()) * relative;
                error * step / scale
            });
            if error < 1.0 {
                let factor = match error {
                    0.0 => GREATEST_FACTOR,
                    error => GREATEST_FACTOR.min(SAFETY * error.powf(-EXPONENT)),
                };
                length *= if rejected { factor.min(1.0) } else { factor };
                t = t_next;
                y = y_next;
                slope = stages.into_iter().next_back().unwrap_or_default();
                break;
            }
            // `max` passes over what is not a number.
            length *= (SAFETY * error.powf(-EXPONENT)).max(LEAST_FACTOR);
            rejected = true;
        }
        visit(t, &y)?;
    }
    Ok(y)
}

/// One step: the state at its end, and the derivatives of its stages and of its end.
fn attempt(
    derivative: &mut Derivative<'_>,
    t: f64,
    y: &[f64],
    slope: &[f64],
    step: f64,
) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let along = |weights: &[f64], stages: &[Vec<f64>]| -> Vec<f64> {
        let sum = |i: usize| -> f64 { weights.iter().zip(stages).map(|(w, k)| w * k[i]).sum() };
        y.iter().enumerate().map(|(i, y)| y + sum(i) * step).collect()
    };
    let mut stages = Vec::with_capacity(7);
    stages.push(slope.to_vec());
    for (node, weights) in NODES.iter().zip(STAGES).skip(1) {
        let stage = derivative(t + node * step, &along(weights, &stages))?;
        stages.push(stage);
    }
    let y_next = along(&WEIGHTS, &stages);
    stages.push(derivative(t + step, &y_next)?);
    Ok((y_next, stages))
}

/// The length of the first step.
fn first_step(
    derivative: &mut Derivative<'_>,
    (start, end): (f64, f64),
    y: &[f64],
    slope: &[f64],
    scale: &[f64],
) -> Result<f64> {
    let whole = (end - start).abs();
    let d0 = rms(y.len(), |i| y[i] / scale[i]);
    let d1 = rms(y.len(), |i| slope[i] / scale[i]);
    let h0 = if d0 < 1e-5 || d1 < 1e-5 { 1e-6 } else { 0.01 * d0 / d1 };
    let h0 = h0.min(whole);
    let step = h0 * (end - start).signum();
    let moved: Vec<f64> = y.iter().zip(slope).map(|(y, slope)| y + step * slope).collect();
    let slope_there = derivative(start + step, &moved)?;
    let d2 = rms(y.len(), |i| (slope_there[i] - slope[i]) / scale[i]) / h0;
    let h1 = if d1 <= 1e-15 && d2 <= 1e-15 {
        (h0 * 1e-3).max(1e-6)
    } else {
        (0.01 / d1.max(d2)).powf(EXPONENT)
    };
    Ok((100.0 * h0).min(h1).min(whole))
}

/// The root of the mean square of `n` values.
fn rms(n: usize, value: impl Fn(usize) -> f64) -> f64 {
    let squares: f64 = (0..n).map(|i| value(i).powi(2)).sum();
    (squares / n as f64).sqrt()
}

/// The next number towards `sign` times infinity.
fn next_after(t: f64, sign: f64) -> f64 {
    if sign > 0.0 { t.next_up() } else { t.next_down() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `calls`, the times and the end are scipy 1.17's for the same problem and tolerance.
    fn check(
        derivative: fn(f64, &[f64]) -> Vec<f64>,
        interval: (f64, f64),
        y: &[f64],
        tolerance: f64,
        (calls, times, end): (usize, &[f64], &[f64]),
    ) {
        let mut asked = 0;
        let mut count = |t: f64, y: &[f64]| {
            asked += 1;
            Ok(derivative(t, y))
        };
        let mut visited = Vec::new();
        let mut visit = |t: f64, _: &[f64]| {
            visited.push(t);
            Ok(())
        };
        let got = integrate(&mut count, interval, y.to_vec(), tolerance, &mut visit).unwrap();
        assert_eq!(asked, calls);
        assert_eq!(visited.len(), times.len(), "{visited:?}");
        for (got, expected) in visited.iter().chain(&got).zip(times.iter().chain(end)) {
            assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        }
    }

    fn circle(_: f64, y: &[f64]) -> Vec<f64> {
        vec![y[1], -y[0]]
    }

    #[test]
    fn steps_are_those_of_scipy() {
        let times = [0.1071773462536293, 1.13443994885525, 2.0];
        let end = [-0.416660201029859, -0.9090527036154654];
        check(circle, (0.0, 2.0), &[1.0, 0.0], 1e-3, (20, &times, &end));
        // Backwards.
        let times = [
            1.9730782678180305,
            1.7189011168586257,
            1.4533949198654297,
            1.1782702019569393,
            0.8955496418268507,
            0.6115013389021955,
            0.33517021229745975,
            0.07242784574725758,
            0.0,
        ];
        let end = [-0.4161468660426612, 0.9092966116590828];
        check(circle, (2.0, 0.0), &[1.0, 0.0], 1e-6, (56, &times, &end));
    }

    #[test]
    fn a_rejected_step_is_tried_again_with_a_shorter_one() {
        let stiff = |t: f64, y: &[f64]| vec![-50.0 * (y[0] - t.cos())];
        let times = [
            9.999999999999999e-05,
            0.0011,
            0.0111,
            0.03071164053989299,
            0.05260577235989289,
            0.0794325928398362,
            0.11241089585597573,
            0.15451740721566853,
            0.2099264617108423,
            0.27963451444361476,
            0.34193904474791287,
            0.404243575052211,
            0.4685607259910748,
            0.532877822632857,
            0.5956766856902644,
            0.6576169902793002,
            0.7202739296973323,
            0.7841001291965612,
            0.8481140285730071,
            0.9113781009118087,
            0.974111978786124,
            1.0,
        ];
        check(stiff, (0.0, 1.0), &[0.0], 1e-3, (140, &times, &[0.5566344663895153]));
    }

    #[test]
    fn rest_is_passed_over_in_growing_steps() {
        let times = [1e-6, 1.1e-5, 1.11e-4, 1.111e-3, 0.011111, 0.111111, 1.0];
        let rest = |_: f64, y: &[f64]| vec![0.0 * y[0]];
        check(rest, (0.0, 1.0), &[3.0], 1e-3, (44, &times, &[3.0]));
        check(rest, (1.0, 1.0), &[3.0], 1e-3, (0, &[], &[3.0]));
    }

    #[test]
    fn a_derivative_that_is_not_finite_ends_the_integration() {
        let mut nowhere = |_: f64, _: &[f64]| Ok(vec![f64::NAN]);
        let err = integrate(&mut nowhere, (1.0, 0.0), vec![1.0], 1e-3, &mut |_, _| Ok(()));
        let err = err.unwrap_err().to_string();
        assert!(err.contains("adaptive step at time 1 expected"), "{err}");
    }
}
