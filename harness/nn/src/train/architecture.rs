//! Architectures by name, with every size written out: what a training is told, since there are no
//! weights yet to read the sizes off.

use super::error::TrainError;
use crate::arch::Architecture;

/// What names look like.
const NAMES: &str = "`resnet18_32x32`, `resnet34_32x32`, `resnet20` (depth 6n + 2), `wrn40-2` \
                     (depth 6n + 4 and width), `densenet100-12` (depth 6n + 4 and growth), \
                     `pyramidnet164_a200` (depth 9n + 2 and alpha), \
                     `resnet18_224x224`, `resnet34_224x224`, `resnet50`, \
                     `resnet101` or `resnet152`";

/// The architecture of a name.
///
/// # Errors
/// A name that is none.
pub fn architecture(name: &str) -> Result<Architecture, TrainError> {
    parse(name).ok_or_else(|| TrainError::recipe("arch", NAMES, format!("`{name}`")))
}

fn parse(name: &str) -> Option<Architecture> {
    let small = |depth: &str| match depth {
        "18" => Some([2, 2, 2, 2]),
        "34" => Some([3, 4, 6, 3]),
        _ => None,
    };
    if let Some((depth, size)) = name.strip_prefix("resnet").and_then(|rest| rest.split_once('_')) {
        let blocks = small(depth)?;
        return match size {
            "32x32" => Some(Architecture::ResNet32 { blocks }),
            "224x224" => Some(Architecture::ResNet224 { blocks, bottleneck: false }),
            _ => None,
        };
    }
    if let Some(depth) = name.strip_prefix("resnet") {
        let blocks = match depth {
            "50" => [3, 4, 6, 3],
            "101" => [3, 4, 23, 3],
            "152" => [3, 8, 36, 3],
            depth => {
                let blocks = blocks(depth, 2, 6)?;
                return Some(Architecture::ResNetCifar { blocks, width: 16, projection: false });
            }
        };
        return Some(Architecture::ResNet224 { blocks, bottleneck: true });
    }
    if let Some((depth, widen)) = name.strip_prefix("wrn").and_then(|rest| rest.split_once('-')) {
        return Some(Architecture::Wrn { blocks: blocks(depth, 4, 6)?, widen: size(widen)? });
    }
    if name.starts_with("pyramidnet") {
        return Architecture::pyramidnet(name);
    }
    let (depth, growth) = name.strip_prefix("densenet")?.split_once('-')?;
    let growth = size(growth)?;
    Some(Architecture::DenseNet {
        layers: blocks(depth, 4, 6)?,
        growth,
        stem: 2 * growth,
        bottleneck: true,
        halving: true,
    })
}

/// A size that a network may have: a slip of the finger must not ask for all the memory there is.
fn size(text: &str) -> Option<usize> {
    text.parse().ok().filter(|size| (1..=10_000).contains(size))
}

/// `n` of a depth `each * n + rest`.
fn blocks(depth: &str, rest: usize, each: usize) -> Option<usize> {
    let layers = size(depth)?.checked_sub(rest)?;
    (layers > 0 && layers.is_multiple_of(each)).then_some(layers / each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variables::Variables;
    use candle_core::Device;

    #[test]
    fn an_architecture_is_the_one_that_its_weights_would_be_read_as() {
        for name in [
            "resnet18_32x32",
            "resnet20",
            "wrn10-2",
            "densenet16-4",
            "pyramidnet11_a12",
            "resnet18_224x224",
            "resnet50",
        ] {
            let arch = architecture(name).unwrap();
            assert_eq!(arch.to_string(), name);
            let variables = Variables::new(0, &Device::Cpu);
            arch.build(3, variables.builder()).unwrap();
            let shapes = variables.all().into_iter().map(|(k, v)| (k, v.dims().to_vec())).collect();
            assert_eq!(Architecture::infer(&shapes), Some(arch), "{name}");
        }
    }

    #[test]
    fn sizes_that_do_not_exist_are_refused() {
        for name in [
            "resnet21",
            "resnet18",
            "wrn40",
            "wrn41-2",
            "wrn40-0",
            "densenet-12",
            "densenet40-9223372036854775807",
            "resnet6000000000002",
            "pyramidnet9000002_a48",
            "vgg",
            "wrn4-1",
        ] {
            let err = architecture(name).unwrap_err().to_string();
            assert!(err.contains(&format!("got `{name}`")), "{err}");
        }
    }
}
