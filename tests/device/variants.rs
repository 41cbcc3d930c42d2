//! The networks that the tests share, as small as they can be with every kind of layer.

use candle_core::{Device, Tensor};
use oodbench_diffusion::net::NetConfig;
use oodbench_nn::formula;
use serde_json::{Value, json};

fn read(mut config: Value, changes: &Value) -> NetConfig {
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    serde_json::from_value(config).expect("a configuration")
}

pub fn ddim(changes: &Value) -> NetConfig {
    let config = json!({
        "struc": "DDIM", "image_size": 8, "num_classes": 10, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.2,
        "resamp_with_conv": true,
    });
    read(config, changes)
}

pub fn iddpm(changes: &Value) -> NetConfig {
    let config = json!({
        "struc": "iDDPM", "image_size": 8, "num_classes": 10, "in_channels": 3,
        "model_channels": 32, "out_channels": 6, "num_res_blocks": 1, "attention_resolutions": [2],
        "dropout": 0.2, "channel_mult": [1, 2], "use_scale_shift_norm": true, "num_heads": 4,
        "num_heads_upsample": 2,
    });
    read(config, changes)
}

/// Every kind of layer of either network, once.
pub fn every() -> Vec<(&'static str, NetConfig)> {
    vec![
        ("ddim", ddim(&json!({}))),
        ("ddim without classes or convolutions between levels", {
            ddim(&json!({"resamp_with_conv": false, "num_classes": 0, "attn_resolutions": [8]}))
        }),
        ("ddim of 64 channels", ddim(&json!({"ch": 64, "num_res_blocks": 2}))),
        ("iddpm", iddpm(&json!({}))),
        ("iddpm that adds the time", {
            iddpm(&json!({"use_scale_shift_norm": false, "conv_resample": false}))
        }),
        ("iddpm with attention everywhere", {
            iddpm(&json!({"num_classes": 0, "attention_resolutions": [1, 2], "out_channels": 3}))
        }),
    ]
}

/// Images, steps and classes for a network: `[3, 3, 8, 8]`, `[3]` and `[3]`.
pub struct Inputs {
    pub x: Tensor,
    pub t: Tensor,
    pub y: Option<Tensor>,
}

impl Inputs {
    pub fn of(net: &NetConfig, device: &Device) -> Self {
        let x = Tensor::from_vec(formula::normal("xs", 3 * 192), (3, 3, 8, 8), device);
        let y = (net.n_classes() > 0).then(|| Tensor::new(&[1u32, 10, 7], device));
        Self {
            x: x.expect("images"),
            t: Tensor::new(&[3f32, 999.0, 41.5], device).expect("steps"),
            y: y.transpose().expect("classes"),
        }
    }
}
