//! Weights as files that describe themselves: safetensors in half precision, with text beside the
//! tensors that says what the network is.
//!
//! | key | in | what |
//! | --- | --- | --- |
//! | `format` | both | `oodbench.classifier/1` or `oodbench.diffusion/1` |
//! | `images` | both | the recipe of the images, such as `glyphs/1` |
//! | `recipe` | both | BLAKE3 of everything that the training depended on |
//! | `arch` | classifier | name of the architecture |
//! | `classes` | classifier | number of classes |
//! | `mean`, `std` | classifier | JSON array: the normalisation, for pixels from 0 to 1 |
//! | `val_accuracy` | classifier | of the weights in the file, a fraction |
//! | `oodbench.diffusion.net` | diffusion | JSON of `NetConfig`, `[diffusion.net]` of the recipe |
//! | `oodbench.diffusion.schedule` | diffusion | JSON of `ScheduleConfig`, likewise |
//! | `steps` | diffusion | how many training steps |

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use half::f16;

/// A file's text by key.
pub(crate) type Metadata = BTreeMap<&'static str, String>;

/// The bytes of a weights file. The same input gives the same bytes.
///
/// The header is written here, because the crate `safetensors` keeps the text in a hash map and
/// would write it in another order each time.
pub(crate) fn to_bytes(tensors: &BTreeMap<String, Tensor>, metadata: &Metadata) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::to_value(metadata)?);
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let start = data.len();
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F16)?.flatten_all()?;
        data.extend(values.to_vec1::<f16>()?.into_iter().flat_map(f16::to_le_bytes));
        let entry = serde_json::json!({
            "dtype": "F16",
            "shape": tensor.dims(),
            "data_offsets": [start, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oodbench_nn::checkpoint::StateDict;
    use std::path::Path;

    #[test]
    fn a_file_comes_back_with_its_text_and_rounded_weights() {
        let values = Tensor::new(&[[0.5f32, -0.1], [3.0, 1e-3]], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("fc.weight".to_owned(), values)]);
        let metadata = Metadata::from([("arch", "resnet20".to_owned())]);
        let bytes = to_bytes(&tensors, &metadata).unwrap();
        assert_eq!(bytes, to_bytes(&tensors, &metadata).unwrap());
        let file = StateDict::from_bytes(&bytes, Path::new("a.safetensors")).unwrap();
        assert_eq!(file.metadata()["arch"], "resnet20");
        let (vb, _) = file.builder(&Device::Cpu);
        let read = vb.get((2, 2), "fc.weight").unwrap().flatten_all().unwrap();
        let rounded = [0.5, -0.1, 3.0, 1e-3].map(|value| f16::from_f32(value).to_f32());
        assert_eq!(read.to_vec1::<f32>().unwrap(), rounded);
    }
}
