//! The section `Schedule`.
//!
//! The reference reads `type`, `beta_start`, `beta_end` and `diffusion_step`. The other keys that
//! its iDDPM files carry are left over from another program; they are accepted where they agree
//! with what happens, and refused where they ask for something else.

use serde::{Deserialize, Serialize};

use super::keys::KeyError;
use crate::schedule::{Kind, ScheduleConfig};

/// Section `Schedule`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct ScheduleSection {
    /// `linear`, `quad` or `cosine`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// First beta, 1e-4 where it is absent; without effect on `cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// Last beta, 0.02 where it is absent; without effect on `cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// Number of steps, 1000 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diffusion_step: Option<usize>,
    /// Without effect: how many channels the network predicts is said by `Model.out_channels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_sigma: Option<bool>,
    /// Without effect: no sampler here draws noise of that variance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_small: Option<bool>,
    /// Without effect; must say the same as `type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_schedule: Option<Kind>,
    /// Without effect in the reference, and refused here unless `false`: the loss is
    /// `Train.loss_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_kl: Option<bool>,
    /// Without effect in the reference, and refused here unless `false`: networks predict noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predict_xstart: Option<bool>,
    /// Without effect: the network is given the step as it is, of whatever number of steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescale_timesteps: Option<bool>,
    /// Without effect: the learned variance is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescale_learned_sigmas: Option<bool>,
    /// Without effect; only `ddim` and nothing are accepted, because the number of steps is given
    /// to the command that samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_respacing: Option<String>,
}

impl ScheduleSection {
    /// The keys that have an effect, with their defaults.
    pub fn config(&self) -> ScheduleConfig {
        let default = ScheduleConfig::default();
        ScheduleConfig {
            kind: self.kind,
            beta_start: self.beta_start.unwrap_or(default.beta_start),
            beta_end: self.beta_end.unwrap_or(default.beta_end),
            diffusion_step: self.diffusion_step.unwrap_or(default.diffusion_step),
        }
    }

    pub(super) fn check(&self) -> Result<(), KeyError> {
        self.config().check().map_err(|err| KeyError::refused(err.key, err.message, None))?;
        let unsupported = [
            ("use_kl", self.use_kl, "the loss is chosen by `Train.loss_type`"),
            ("predict_xstart", self.predict_xstart, "networks predict the noise here"),
        ];
        for (key, value, hint) in unsupported {
            if value == Some(true) {
                return Err(KeyError::refused(key, "expected `false`, got `true`".into(), hint));
            }
        }
        if self.noise_schedule.is_some_and(|kind| kind != self.kind) {
            let message = "expected the same as `type`".to_owned();
            let hint = "`type` is the key that is read; remove this one";
            return Err(KeyError::refused("noise_schedule", message, hint));
        }
        match self.timestep_respacing.as_deref() {
            None | Some("ddim" | "") => Ok(()),
            Some(other) => {
                let message = format!("expected `ddim`, got `{other}`");
                let hint = "the number of steps is given to the command that samples";
                Err(KeyError::refused("timestep_respacing", message, hint))
            }
        }
    }
}
