//! The names of samplers, and what each is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A sampler by its published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Method {
    /// Song et al., "Denoising Diffusion Implicit Models", 2021, deterministic.
    #[serde(rename = "DDIM")]
    Ddim,
    /// Pseudo linear multistep of order 2.
    #[serde(rename = "PNDM2")]
    Pndm2,
    /// Pseudo linear multistep of order 4.
    #[serde(rename = "PNDM4")]
    Pndm4,
    /// The probability-flow ODE by the forward Euler method.
    #[serde(rename = "NDM1")]
    Ndm1,
    /// The probability-flow ODE by a linear multistep method of order 4.
    #[serde(rename = "NDM4")]
    Ndm4,
    /// The probability-flow ODE by an adaptive Runge-Kutta method of order 5(4).
    #[serde(rename = "PF")]
    Pf,
}

/// How a sampler moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// In strides of equal length: a transfer along a gradient.
    Strides(Transfer, Gradient),
    /// In steps whose length follows from an estimate of the error.
    Adaptive,
}

/// How a state moves along a given direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// On the curve that is exact for a noise that does not change; the direction is the noise.
    Ddim,
    /// On a straight line; the direction is the derivative of the probability-flow ODE.
    Linear,
}

/// How the directions of the present and the past steps make the one to move along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gradient {
    Euler,
    /// Adams-Bashforth of order 2, begun by one improved Euler step.
    Multistep2,
    /// Adams-Bashforth of order 4, begun by three Runge-Kutta steps.
    Multistep4,
}

impl Method {
    pub const ALL: [Self; 6] =
        [Self::Ddim, Self::Pndm2, Self::Pndm4, Self::Ndm1, Self::Ndm4, Self::Pf];

    /// Whether the method chooses its own steps. It chooses them for all images of a batch
    /// together, as the reference does: who wants results that do not depend on the batch gives
    /// such a method one image at a time.
    pub fn is_adaptive(self) -> bool {
        self == Self::Pf
    }

    /// Whether the method integrates the probability-flow ODE, which is written for the linear
    /// schedule: of another one, the first and the last beta alone are heeded, as in the
    /// reference.
    pub fn wants_linear_schedule(self) -> bool {
        matches!(self, Self::Ndm1 | Self::Ndm4 | Self::Pf)
    }

    pub(super) fn scheme(self) -> Scheme {
        match self {
            Self::Ddim => Scheme::Strides(Transfer::Ddim, Gradient::Euler),
            Self::Pndm2 => Scheme::Strides(Transfer::Ddim, Gradient::Multistep2),
            Self::Pndm4 => Scheme::Strides(Transfer::Ddim, Gradient::Multistep4),
            Self::Ndm1 => Scheme::Strides(Transfer::Linear, Gradient::Euler),
            Self::Ndm4 => Scheme::Strides(Transfer::Linear, Gradient::Multistep4),
            Self::Pf => Scheme::Adaptive,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddim => "DDIM",
            Self::Pndm2 => "PNDM2",
            Self::Pndm4 => "PNDM4",
            Self::Ndm1 => "NDM1",
            Self::Ndm4 => "NDM4",
            Self::Pf => "PF",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found =
            Self::ALL.into_iter().find(|method| method.to_string().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let known = Self::ALL.map(|method| method.to_string()).join(", ");
            format!("sampler expected one of {known}, got `{name}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_same_everywhere() {
        for method in Method::ALL {
            let name = method.to_string();
            assert_eq!(name.parse(), Ok(method));
            assert_eq!(name.to_lowercase().parse(), Ok(method));
            assert_eq!(serde_json::to_value(method).unwrap(), name);
        }
        let err = "DDPM".parse::<Method>().unwrap_err();
        assert_eq!(err, "sampler expected one of DDIM, PNDM2, PNDM4, NDM1, NDM4, PF, got `DDPM`");
    }
}
