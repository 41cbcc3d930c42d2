//! A host whose data lie in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::abi_stable::std_types::{RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{
    ErrorCode, ForwardOutputs, Head, Host, Host_TO, HostBox, LogLevel, NamedTensor, Needs,
    RawError, RawResult, SplitId, TensorView,
};

use super::data::{MemoryData, MemoryTensor};
use super::{ImageNetwork, bad_input, unavailable};
use crate::extension::{Extended, answer, check_needs};

/// A host whose data lie in memory.
pub struct MemoryHost {
    needs: Needs,
    data: Arc<MemoryData>,
    network: Option<Arc<dyn ImageNetwork>>,
    seed: u64,
    device: String,
    assets: BTreeMap<String, PathBuf>,
}

impl MemoryHost {
    /// A host that offers what `needs` declare, on the CPU, with seed 0 and without a network or files.
    pub fn new(needs: Needs, data: Arc<MemoryData>) -> Self {
        let device = "cpu".to_owned();
        Self { needs, data, network: None, seed: 0, device, assets: BTreeMap::new() }
    }

    /// What `forward`, `vjp` and `layers` run.
    #[must_use]
    pub fn network(mut self, network: Arc<dyn ImageNetwork>) -> Self {
        self.network = Some(network);
        self
    }

    /// The seed of the run.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Where the detector is to compute.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        device.clone_into(&mut self.device);
        self
    }

    /// The file that a parameter stands for.
    #[must_use]
    pub fn asset(mut self, parameter: &str, path: PathBuf) -> Self {
        self.assets.insert(parameter.to_owned(), path);
        self
    }

    /// The host as a detector takes it.
    pub fn boxed(self) -> HostBox {
        Host_TO::from_value(self, TD_Opaque)
    }

    fn offers(&self, need: Needs, service: &str) -> Result<(), RawError> {
        check_needs(self.needs, need, service)
    }

    fn the_network(&self) -> Result<&dyn ImageNetwork, RawError> {
        self.network.as_deref().ok_or_else(|| unavailable("there is no network".to_owned()))
    }

    fn path(&self, asset: &str) -> Result<&Path, RawError> {
        self.assets.get(asset).map(PathBuf::as_path).ok_or_else(|| {
            let message = format!("parameter `{asset}` expected a file, got none");
            RawError::new(ErrorCode::BAD_PARAMETER, message)
        })
    }

    /// The network and the size of these images.
    fn run(&self, images: TensorView<'_>) -> Result<(&dyn ImageNetwork, (usize, usize)), RawError> {
        let size = match *images.shape.as_slice() {
            [_, 3, height, width] if images.is_valid() => (height, width),
            ref shape => {
                return Err(bad_input(format!(
                    "images expected [n, 3, height, width], got {shape:?}"
                )));
            }
        };
        Ok((self.the_network()?, size))
    }

    fn do_images(&self, split: SplitId, first: usize, out: &mut [f32]) -> Result<(), RawError> {
        self.offers(Needs::IMAGES, "images")?;
        let needs = self.needs;
        let asked = |need: Needs, split| if needs.contains(need) { split } else { None };
        let found = match split {
            SplitId::TRAIN => asked(Needs::TRAIN, Some(&self.data.train)),
            SplitId::VAL => asked(Needs::VAL, Some(&self.data.val)),
            SplitId::VAL_OOD => asked(Needs::VAL_OOD, self.data.val_ood.as_ref()),
            _ => None,
        };
        let images = found.map(|split| &split.images).filter(|images| !images.is_absent());
        let images = images.ok_or_else(|| {
            unavailable(format!("images of split {} were not asked for, or are not there", split.0))
        })?;
        let row = images.row_len();
        let start = first.checked_mul(row).filter(|_| out.len().is_multiple_of(row));
        let wanted = start.and_then(|start| images.data.get(start..start.checked_add(out.len())?));
        let Some(wanted) = wanted else {
            return Err(bad_input(format!(
                "images expected a multiple of {row} values within {} images, got {} from image {first}",
                images.n_rows(),
                out.len()
            )));
        };
        out.copy_from_slice(wanted);
        Ok(())
    }

    fn do_head(&self) -> Result<Head, RawError> {
        self.offers(Needs::HEAD, "head")?;
        let head = self.data.head.as_ref();
        let head = head.ok_or_else(|| unavailable("there is no head".to_owned()))?;
        Ok(Head {
            weight: head.weight.clone().into(),
            bias: head.bias.clone().into(),
            n_classes: self.data.n_classes,
            n_features: self.data.n_features,
        })
    }

    fn do_image_shape(&self) -> Result<RVec<usize>, RawError> {
        self.offers(Needs::IMAGES, "image_shape")?;
        let size = self.data.image_size;
        let (height, width) = size.ok_or_else(|| unavailable("there are no images".to_owned()))?;
        Ok(vec![3, height, width].into())
    }

    fn do_vjp(
        &self,
        images: TensorView<'_>,
        at: &str,
        cotangent: TensorView<'_>,
    ) -> Result<RVec<f32>, RawError> {
        self.offers(Needs::GRADIENT, "vjp")?;
        let (network, size) = self.run(images)?;
        Ok(network.vjp(images.data.as_slice(), size, at, cotangent.data.as_slice())?.into())
    }

    fn do_layers(
        &self,
        images: TensorView<'_>,
        names: RVec<RString>,
    ) -> Result<RVec<NamedTensor>, RawError> {
        self.offers(Needs::LAYERS, "layers")?;
        let (network, size) = self.run(images)?;
        let names: Vec<String> = names.into_iter().map(RString::into_string).collect();
        let layers = network.layers(images.data.as_slice(), size, &names)?;
        let named = |(name, MemoryTensor { data, shape }): (String, MemoryTensor)| NamedTensor {
            name: name.into(),
            data: data.into(),
            shape: shape.into(),
        };
        Ok(names.into_iter().zip(layers).map(named).collect())
    }
}

impl Host for MemoryHost {
    fn log(&self, _level: LogLevel, _message: RStr<'_>) {
        // There is no user to tell.
    }

    fn progress(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        false
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn threads(&self) -> usize {
        1
    }

    fn device(&self) -> RString {
        self.device.as_str().into()
    }

    fn asset(&self, name: RStr<'_>) -> RawResult<RString> {
        let offered = self.offers(Needs::ASSETS, "asset");
        let path = offered.and_then(|()| self.path(name.as_str()));
        path.map(|path| path.display().to_string().into()).into()
    }

    fn head(&self) -> RawResult<Head> {
        self.do_head().into()
    }

    fn images(&self, split: SplitId, first: usize, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        self.do_images(split, first, out.as_mut_slice()).into()
    }

    fn image_shape(&self) -> RawResult<RVec<usize>> {
        self.do_image_shape().into()
    }

    fn forward(&self, images: TensorView<'_>) -> RawResult<ForwardOutputs> {
        let outputs = self
            .offers(Needs::FORWARD, "forward")
            .and_then(|()| self.run(images))
            .and_then(|(network, size)| network.forward(images.data.as_slice(), size));
        outputs.into()
    }

    fn vjp(
        &self,
        images: TensorView<'_>,
        at: RStr<'_>,
        cotangent: TensorView<'_>,
    ) -> RawResult<RVec<f32>> {
        self.do_vjp(images, at.as_str(), cotangent).into()
    }

    fn layer_names(&self) -> RawResult<RVec<RString>> {
        let names = self.offers(Needs::LAYERS, "layer_names").map(|()| {
            let network = self.network.as_ref();
            network.map(|network| network.layer_names()).unwrap_or_default()
        });
        names.map(|names| names.into_iter().map(RString::from).collect()).into()
    }

    fn layers(&self, images: TensorView<'_>, names: RVec<RString>) -> RawResult<RVec<NamedTensor>> {
        self.do_layers(images, names).into()
    }

    fn extension(&self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        answer(self, id.as_str(), input.as_slice()).into()
    }
}

impl Extended for MemoryHost {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn normalisation(&self) -> Result<Normalisation, RawError> {
        Ok(self.the_network()?.normalisation())
    }

    fn layer_groups(&self) -> Result<LayerGroups, RawError> {
        Ok(self.the_network()?.layer_groups())
    }

    fn forward_from(
        &self,
        at: &str,
        activation: &MemoryTensor,
    ) -> Result<ForwardOutputs, RawError> {
        self.the_network()?.forward_from(at, activation)
    }

    fn forward_with(&self, asset: &str, images: &MemoryTensor) -> Result<ForwardOutputs, RawError> {
        let size = (images.shape[2], images.shape[3]);
        self.the_network()?.forward_with(self.path(asset)?, &images.data, size)
    }
}
