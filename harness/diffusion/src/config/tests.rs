//! Configurations as the reference spells them, and what is refused in them.

use std::error::Error as _;

use super::*;
use crate::schedule::Kind;

/// Every key of the reference's files for the DDIM U-Net, spelt as there, with other values.
const DDIM: &str = r#"
Dataset:
  name: 'CIFAR10'
  image_size: 16
  num_classes: 10
  channels: 3
  batch_size: 96
  logit_transform: false
  uniform_dequantization: false
  gaussian_dequantization: false
  random_flip: true
  rescaled: true
  num_workers: 2

Model:
  struc: 'DDIM'
  type: "simple"
  image_size: 16
  num_classes: 10
  in_channels: 3
  out_ch: 3
  ch: 64
  ch_mult: [ 1, 2, 2 ]
  num_res_blocks: 1
  attn_resolutions: [ 8, ]
  dropout: 0.1
  var_type: fixedlarge
  resamp_with_conv: True

Schedule:
  type: 'linear'
  beta_start: 0.0002
  beta_end: 0.03
  diffusion_step: 500

Train:
  epoch: 7
  batch_size: 32
  num_classes: 10
  accum_num: 2
  cond_ratio: 0.8
  iter_type: 'diffusion'
  iter_interval: 500
  t_type: 'symmetry'
  loss_type: 'linear'
  ema_rate: 0.999
  ema: True

Optim:
  weight_decay: 0.000
  optimizer: 'adamw'
  lr: 0.0002
  warmup: 100
  lr_decay: true
  lr_step: 50
  lr_gamma: 0.5
  beta1: 0.8
  amsgrad: false
  eps: 0.00000001
  grad_clip: 2.0

Sample:
  batch_size: 64
  last_only: True
  total_num: 100
"#;

/// The sections that are spelt otherwise for the iDDPM U-Net.
const IDDPM: &str = r#"
Model:
  struc: 'iDDPM'
  image_size: 16
  num_classes: 0
  in_channels: 3
  model_channels: 64
  out_channels: 6
  num_res_blocks: 2
  attention_resolutions: [ 2, 4 ]
  dropout: 0.3
  channel_mult: [ 1, 2, 2 ]
  dims: 2
  conv_resample: true
  use_scale_shift_norm: true
  use_checkpoint: false
  num_heads: 4
  num_heads_upsample: 4

Schedule:
  type: 'cosine'
  diffusion_step: 1000
  learn_sigma: true
  sigma_small: false
  noise_schedule: cosine
  use_kl: false
  predict_xstart: false
  rescale_timesteps: true
  rescale_learned_sigmas: true
  timestep_respacing: ddim
"#;

fn read(name: &str, text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Config::read(&path).map(|config| Config { path: PathBuf::new(), ..config }).map_err(|err| {
        assert!(err.to_string().starts_with("read configuration `"), "{err}");
        assert!(err.to_string().contains(name), "{err}");
        err.source().unwrap().to_string()
    })
}

/// The message for [`DDIM`] with `from` exchanged.
fn refused(from: &str, to: &str) -> String {
    assert!(DDIM.contains(from), "`{from}`");
    read("a.yml", &DDIM.replacen(from, to, 1)).unwrap_err()
}

#[test]
fn every_key_of_the_reference_is_read() {
    let config = read("a.yml", DDIM).unwrap();
    let dataset = config.dataset().unwrap();
    assert_eq!((dataset.name.as_deref(), dataset.random_flip), (Some("CIFAR10"), true));
    let NetConfig::Ddim(net) = config.model().unwrap() else { panic!("another network") };
    assert_eq!(
        (net.ch_mult.as_slice(), net.attn_resolutions.as_slice()),
        (&[1, 2, 2][..], &[8][..])
    );
    assert!(net.resamp_with_conv);
    let expected = ScheduleConfig {
        kind: Kind::Linear,
        beta_start: 0.0002,
        beta_end: 0.03,
        diffusion_step: 500,
    };
    assert_eq!(config.schedule(), expected);
    let train = config.train().unwrap();
    assert_eq!((train.epoch, train.accum_num, train.loss_type), (7, 2, LossType::Linear));
    assert_eq!((train.cond_ratio, train.ema_rate, train.ema), (0.8, 0.999, true));
    let optim = config.optim().unwrap();
    assert_eq!((optim.optimizer, optim.eps, optim.beta1), (OptimizerType::Adamw, 1e-8, 0.8));
    assert_eq!(config.sample().total_num, 100);
    // What the reference's loader reads, not what its section `Train` says.
    assert_eq!(config.batch_size().unwrap(), 96);
}

#[test]
fn the_keys_of_iddpm_are_read_too() {
    let config = read("a.yml", IDDPM).unwrap();
    let NetConfig::Iddpm(net) = config.model().unwrap() else { panic!("another network") };
    assert_eq!((net.num_heads, net.num_heads_upsample, net.out_channels), (4, 4, 6));
    assert_eq!(config.schedule().kind, Kind::Cosine);
    assert_eq!(config.sample(), SampleConfig::default());
}

#[test]
fn three_spellings_say_the_same() {
    for text in [DDIM, IDDPM] {
        let yaml = read("a.yaml", text).unwrap();
        let json = serde_json::to_string(&yaml).unwrap();
        assert_eq!(read("a.json", &json).unwrap(), yaml);
        let toml = toml::to_string(&yaml).unwrap();
        assert_eq!(read("a.toml", &toml).unwrap(), yaml);
        // Without an ending that tells, the content does.
        for text in [text, &json, &toml] {
            assert_eq!(read("a.conf", text).unwrap(), yaml);
        }
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_section_and_what_was_meant() {
    let text = refused("  ch_mult:", "  chmult:");
    assert!(
        text.starts_with("unknown field `chmult` in `Model`, expected one of `type`"),
        "{text}"
    );
    assert!(text.ends_with("\n\nhint: did you mean `ch_mult`?"), "{text}");
    let text = refused("  lr_gamma:", "  gamma_lr_of_old:");
    assert!(text.starts_with("unknown field `gamma_lr_of_old` in `Optim`, expected"), "{text}");
    let text = refused("Train:", "train:");
    assert!(
        text.starts_with("unknown field `train`, expected one of `Dataset`, `Model`"),
        "{text}"
    );
    assert!(text.ends_with("hint: did you mean `Train`?"), "{text}");
    // A key of the other network.
    let text = refused("  ch: 64", "  model_channels: 64");
    assert!(text.starts_with("unknown field `model_channels` in `Model`"), "{text}");
}

#[test]
fn a_wrong_value_is_an_error_with_its_key() {
    let check = |from, to, expected: &str| assert_eq!(refused(from, to), expected);
    check("epoch: 7", "epoch: seven", "`Train.epoch` expected a whole number from 0, got `seven`");
    check(
        "[ 1, 2, 2 ]",
        "[ 1, two ]",
        "`Model.ch_mult.1` expected a whole number from 0, got `two`",
    );
    check("epoch: 7", "epoch: 0", "`Train.epoch` expected at least 1, got 0");
    check("  epoch: 7\n", "", "no `epoch` in `Train`");
    check("  struc: 'DDIM'\n", "", "no `struc` in `Model`");
    check("ch: 64", "ch: -64", "`Model.ch` expected a whole number from 0, got -64");
    check(
        "image_size: 16\n  num_classes: 10\n  in",
        "image_size: 18\n  num_classes: 10\n  in",
        "`Model.image_size` expected to be halved 2 times, got 18",
    );
    check("cond_ratio: 0.8", "cond_ratio: 90", "`Train.cond_ratio` expected 0 to 1, got 90");
    check("lr: 0.0002", "lr: 0", "`Optim.lr` expected above 0, got 0");
    // Adam divides by what is left to 1.
    check("beta1: 0.8", "beta1: 1.0", "`Optim.beta1` expected at least 0 and below 1, got 1");
    let text = refused("'adamw'", "'AdamW'");
    assert!(text.starts_with("`Optim.optimizer` expected one of `adam`, `adamw`, `sgd`"), "{text}");
    assert!(text.ends_with("got `AdamW`\n\nhint: did you mean `adamw`?"), "{text}");
    let text = refused("'DDIM'", "'DDPM'");
    assert!(
        text.starts_with("`Model.struc` expected one of `DDIM`, `iDDPM`, got `DDPM`"),
        "{text}"
    );
    check("ema: True", "ema: 1", "`Train.ema` expected `true` or `false`, got 1");
    check("lr: 0.0002", "lr: fast", "`Optim.lr` expected a number, got `fast`");
    check("[ 8, ]", "8", "`Model.attn_resolutions` expected a list, got 8");
    assert_eq!(read("a.yml", "Train: 5").unwrap_err(), "`Train` expected a table, got 5");
}

#[test]
fn what_is_not_done_here_is_refused() {
    let text = refused("logit_transform: false", "logit_transform: true");
    assert!(text.starts_with("`Dataset.logit_transform` expected `false`, got `true`"), "{text}");
    assert!(text.contains("\n\nhint: "), "{text}");
    assert!(
        refused("rescaled: true", "rescaled: false").starts_with("`Dataset.rescaled` expected")
    );
    assert!(refused("channels: 3", "channels: 1").starts_with("`Dataset.channels` expected 3"));
    assert!(refused("'symmetry'", "'split'").starts_with("`Train.t_type` expected `symmetry`"));
    assert!(refused("fixedlarge", "learned").starts_with("`Model.var_type` expected `fixedlarge`"));
    let iddpm = |from, to| read("a.yml", &IDDPM.replacen(from, to, 1)).unwrap_err();
    let text = iddpm("noise_schedule: cosine", "noise_schedule: linear");
    assert!(text.starts_with("`Schedule.noise_schedule` expected the same as `type`"), "{text}");
    let text = iddpm("predict_xstart: false", "predict_xstart: true");
    assert!(text.starts_with("`Schedule.predict_xstart` expected `false`, got `true`"), "{text}");
    assert!(iddpm("ddim\n", "ddim25\n").contains("expected `ddim`, got `ddim25`\n\nhint: "));
    assert!(iddpm("dims: 2", "dims: 3").contains("`Model.dims` expected 2, got 3"));
}

#[test]
fn a_section_that_is_needed_and_absent_is_named() {
    let config = read("a.toml", "[Schedule]\ntype = \"quad\"\n").unwrap();
    assert_eq!(config.schedule().diffusion_step, 1000);
    let check = |err: ConfigError, expected: &str| {
        let text = err.source.to_string();
        assert!(text.starts_with(expected) && text.contains("\n\nhint: "), "{text}");
    };
    check(config.model().unwrap_err(), "expected section `Model`, got none");
    check(config.train().unwrap_err(), "expected section `Train`, got none");
    check(config.optim().unwrap_err(), "expected section `Optim`, got none");
    check(config.dataset().unwrap_err(), "expected section `Dataset`, got none");
    check(config.batch_size().unwrap_err(), "expected key `Dataset.batch_size`, got none");
    for nothing in ["# nothing yet\n", "Train:\nOptim: {}\n"] {
        assert_eq!(read("a.yml", nothing).unwrap(), Config::default());
    }
}

#[test]
fn the_example_of_the_documentation_is_a_configuration() {
    let text = include_str!("../../../../docs/configuration.md");
    let example = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = read("a.toml", example).unwrap();
    assert_eq!(config.model().unwrap().n_classes(), 10);
    assert_eq!(config.schedule().kind, Kind::Cosine);
}
