//! `train embedded`: draws the digits and trains the two networks on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use oodbench_datasets::glyphs::{self, GlyphSet, IMAGE_SIDE, N_CLASSES, Part};
use oodbench_diffusion::checkpoint::{NET_KEY, SCHEDULE_KEY};
use oodbench_diffusion::train::{Recipe as DiffusionSettings, train_diffusion};
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::Classifier;
use oodbench_nn::examples::{Augmentation, Examples, batch};
use oodbench_nn::train::train_classifier;
use oodbench_record::write_atomically;

use super::progress::{duration, say};
use super::recipe::Recipe;
use super::weights::{Metadata, to_bytes};
use super::{EmbeddedArgs, NetworkName};

pub(super) fn run(args: &EmbeddedArgs, device: &Device) -> Result<()> {
    let recipe = Recipe::load(args.recipe.as_deref())?;
    let wanted = |name| args.only.is_none_or(|only| only == name);
    if wanted(NetworkName::Classifier) {
        let path = args.out.join("classifier.safetensors");
        let hash = recipe.classifier_hash()?;
        if args.force || !is_made_by(&path, &hash) {
            write_atomically(&path, &classifier(&recipe, &hash, device)?)?;
            say(&format!("classifier: wrote `{}`", path.display()));
        } else {
            say(&format!("classifier: kept `{}`, made by this recipe", path.display()));
        }
    }
    if wanted(NetworkName::Diffusion) {
        let path = args.out.join("diffusion.safetensors");
        let hash = recipe.diffusion_hash()?;
        if args.force || !is_made_by(&path, &hash) {
            std::fs::create_dir_all(&args.work)
                .with_context(|| format!("create folder `{}`", args.work.display()))?;
            // Named after the recipe, so that a changed one starts anew.
            let checkpoint = args.work.join(format!("diffusion-{}.safetensors", &hash[..16]));
            write_atomically(&path, &diffusion(&recipe, &hash, &checkpoint, device)?)?;
            std::fs::remove_file(&checkpoint)
                .with_context(|| format!("remove checkpoint `{}`", checkpoint.display()))?;
            say(&format!("diffusion: wrote `{}`", path.display()));
        } else {
            say(&format!("diffusion: kept `{}`, made by this recipe", path.display()));
        }
    }
    Ok(())
}

fn is_made_by(path: &Path, hash: &str) -> bool {
    StateDict::open(path)
        .is_ok_and(|file| file.metadata().get("recipe").is_some_and(|found| found == hash))
}

/// Images of one part, drawn once.
struct Drawn {
    pixels: Vec<u8>,
    set: GlyphSet,
}

impl Drawn {
    const BYTES: usize = (IMAGE_SIDE * IMAGE_SIDE * 3) as usize;

    fn new(part: Part, count: usize) -> Self {
        let set = GlyphSet { part, count };
        Self { pixels: (0..count).flat_map(|index| set.pixels(index)).collect(), set }
    }
}

impl Examples for Drawn {
    fn len(&self) -> usize {
        self.set.count
    }

    fn size(&self) -> (usize, usize) {
        (IMAGE_SIDE as usize, IMAGE_SIDE as usize)
    }

    fn pixels(&self, index: usize) -> &[u8] {
        &self.pixels[index * Self::BYTES..][..Self::BYTES]
    }

    fn label(&self, index: usize) -> u32 {
        self.set.label(index) as u32
    }
}

fn metadata(format: &str, hash: &str) -> Metadata {
    Metadata::from([
        ("format", format!("oodbench.{format}/1")),
        ("images", glyphs::VERSION.to_owned()),
        ("recipe", hash.to_owned()),
    ])
}

/// Trains the classifier; the bytes of its file.
fn classifier(recipe: &Recipe, hash: &str, device: &Device) -> Result<Vec<u8>> {
    let part = &recipe.classifier;
    let train = Drawn::new(Part::DigitsTrain, recipe.images.train);
    let val = Drawn::new(Part::DigitsVal, recipe.images.val);
    let arch = part.architecture()?;
    let epochs = part.recipe.epochs;
    let tensors = train_classifier(
        arch,
        N_CLASSES,
        part.normalisation(),
        (&train, &val),
        &part.recipe,
        device,
        |report| {
            say(&format!(
                "classifier: epoch {}/{epochs}, loss {:.4}, accuracy {:.2} %, {:.0} images/s, {} left",
                report.epoch,
                report.loss,
                100.0 * report.val_accuracy,
                train.len() as f64 / report.wall_s.max(1e-9),
                duration((epochs - report.epoch) as f64 * report.wall_s),
            ));
        },
    )?;
    let mut metadata = metadata("classifier", hash);
    metadata.insert("arch", part.arch.clone());
    metadata.insert("classes", N_CLASSES.to_string());
    metadata.insert("mean", serde_json::to_string(&part.mean)?);
    metadata.insert("std", serde_json::to_string(&part.std)?);
    let accuracy = accuracy_as_read(recipe, &to_bytes(&tensors, &metadata)?, &val, device)?;
    say(&format!("classifier: accuracy {:.2} % in half precision", 100.0 * accuracy));
    metadata.insert("val_accuracy", accuracy.to_string());
    to_bytes(&tensors, &metadata)
}

/// The accuracy of a file's weights, which rounding may have changed.
fn accuracy_as_read(recipe: &Recipe, bytes: &[u8], val: &Drawn, device: &Device) -> Result<f64> {
    const BATCH: usize = 200;
    let part = &recipe.classifier;
    let weights = StateDict::from_bytes(bytes, Path::new("classifier.safetensors"))?;
    let (arch, normalisation) = (Some(part.arch.as_str()), part.normalisation());
    let classifier = Classifier::load(&weights, arch, N_CLASSES, normalisation, device)?;
    let plain = Augmentation { crop_padding: 0, horizontal_flip: false };
    let indices: Vec<usize> = (0..val.len()).collect();
    let mut right = 0.0;
    for indices in indices.chunks(BATCH) {
        let (xs, ys) = batch(val, indices, plain, (0, 0), &Device::Cpu)?;
        let images = xs.flatten_all()?.to_vec1::<f32>()?;
        let logits = classifier.forward(&images, val.size())?.logits.to_device(&Device::Cpu)?;
        let hits = logits.argmax(1)?.eq(&ys)?.to_dtype(DType::F32)?.sum_all()?;
        right += f64::from(hits.to_scalar::<f32>()?);
    }
    ensure!(!val.is_empty(), "`images.val` expected at least 1, got 0");
    Ok(right / val.len() as f64)
}

/// Trains the diffusion network; the bytes of its file.
fn diffusion(recipe: &Recipe, hash: &str, checkpoint: &Path, device: &Device) -> Result<Vec<u8>> {
    const SAY_EVERY: Duration = Duration::from_secs(20);
    let part = &recipe.diffusion;
    let train = Drawn::new(Part::DigitsTrain, recipe.images.diffusion);
    let total = part.recipe.steps;
    let (mut said, mut steps, mut loss) = (Instant::now(), 0u64, 0.0);
    let tensors: BTreeMap<String, Tensor> = train_diffusion(
        &part.net,
        &part.schedule,
        &train,
        &DiffusionSettings::from(&part.recipe),
        Some((checkpoint, &serde_json::json!({ "recipe": hash }))),
        device,
        |report| {
            steps += 1;
            loss += report.loss;
            if said.elapsed() >= SAY_EVERY || report.step == total {
                let steps_a_second = steps as f64 / said.elapsed().as_secs_f64().max(1e-9);
                say(&format!(
                    "diffusion: step {}/{total}, loss {:.3}, {:.0} images/s, {} left",
                    report.step,
                    loss / steps as f64,
                    steps_a_second * part.recipe.batch_size as f64,
                    duration((total - report.step) as f64 / steps_a_second),
                ));
                (said, steps, loss) = (Instant::now(), 0, 0.0);
            }
        },
    )?;
    let mut metadata = metadata("diffusion", hash);
    metadata.insert(NET_KEY, serde_json::to_string(&part.net)?);
    metadata.insert(SCHEDULE_KEY, serde_json::to_string(&part.schedule)?);
    metadata.insert("steps", total.to_string());
    to_bytes(&tensors, &metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oodbench_diffusion::checkpoint::{self, Given};
    use oodbench_diffusion::net::NetConfig;
    use oodbench_nn::classifier::Normalisation;

    /// A recipe of seconds.
    fn tiny() -> Recipe {
        let mut recipe = Recipe::load(None).unwrap();
        recipe.images = super::super::recipe::Images { train: 40, diffusion: 40, val: 20 };
        recipe.classifier.arch = "resnet8".to_owned();
        recipe.classifier.recipe.epochs = 1;
        recipe.classifier.recipe.batch_size = 8;
        recipe.diffusion.recipe.steps = 2;
        recipe.diffusion.recipe.batch_size = 4;
        let NetConfig::Ddim(net) = &mut recipe.diffusion.net else {
            panic!("the recipe trains another network");
        };
        net.ch_mult = vec![1, 1];
        recipe
    }

    fn args(folder: &Path) -> EmbeddedArgs {
        let recipe = folder.join("tiny.toml");
        std::fs::write(&recipe, toml::to_string(&tiny()).unwrap()).unwrap();
        EmbeddedArgs {
            out: folder.join("out"),
            recipe: Some(recipe),
            only: None,
            force: false,
            work: folder.join("work"),
            device: "cpu".to_owned(),
        }
    }

    const NAMES: [&str; 2] = ["classifier.safetensors", "diffusion.safetensors"];

    /// Builds both networks from nothing but their files; what the files say of their recipe.
    fn load(files: [StateDict; 2]) -> [String; 2] {
        let [classifier, diffusion] = &files;
        let about = classifier.metadata();
        let normalisation = Normalisation {
            mean: serde_json::from_str(&about["mean"]).unwrap(),
            std: serde_json::from_str(&about["std"]).unwrap(),
        };
        let (arch, classes) = (Some(about["arch"].as_str()), about["classes"].parse().unwrap());
        Classifier::load(classifier, arch, classes, normalisation, &Device::Cpu).unwrap();
        assert!((0.0..=1.0).contains(&about["val_accuracy"].parse::<f64>().unwrap()));
        let loaded = checkpoint::load(diffusion, &Given::default(), &Device::Cpu).unwrap();
        assert_eq!(loaded.net.image_size(), IMAGE_SIDE as usize);
        files.map(|file| file.metadata()["recipe"].clone())
    }

    #[test]
    fn a_training_ends_with_files_that_describe_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        run(&args, &Device::Cpu).unwrap();
        load(NAMES.map(|name| StateDict::open(&args.out.join(name)).unwrap()));
        assert_eq!(std::fs::read_dir(&args.work).unwrap().count(), 0, "no checkpoint is left");
    }

    #[test]
    fn the_same_recipe_gives_the_same_bytes_and_is_trained_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut args = args(folder.path());
        let bytes =
            |args: &EmbeddedArgs| NAMES.map(|name| std::fs::read(args.out.join(name)).unwrap());
        run(&args, &Device::Cpu).unwrap();
        let first = bytes(&args);
        // A second training would need the folder for its checkpoint.
        std::fs::remove_dir(&args.work).unwrap();
        run(&args, &Device::Cpu).unwrap();
        assert!(!args.work.exists());
        args.force = true;
        run(&args, &Device::Cpu).unwrap();
        assert!(first == bytes(&args), "the second training gave other weights");
    }

    #[test]
    fn the_committed_weights_were_made_by_the_committed_recipe() {
        let recipe = Recipe::load(None).unwrap();
        let files = NAMES.map(|name| {
            let name = format!("glyphs/{name}");
            let bytes = oodbench_datasets::embedded(&name).unwrap();
            StateDict::from_bytes(bytes, Path::new(&name)).unwrap()
        });
        assert!(files[0].metadata()["val_accuracy"].parse::<f64>().unwrap() > 0.97);
        let expected = [recipe.classifier_hash().unwrap(), recipe.diffusion_hash().unwrap()];
        assert_eq!(load(files), expected);
    }
}
