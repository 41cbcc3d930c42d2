//! The addresses of what a step works on, as the kernels read them.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use candle_core::{Result, Storage, Tensor};

use super::{Rule, Variable};

/// Numbers of a variable that one block works on, as in the kernels.
const CHUNK: usize = 8192;

/// Words of `Entry` in the kernels: value, average, three moments, length.
const ENTRY: usize = 6;

/// Sums of gradients begin at multiples of four numbers, so that they can be read four at a time.
const SUM_ALIGNMENT: usize = 4;

/// Variables, and the chunks that blocks work on.
pub(super) struct Table {
    entries: CudaSlice<u64>,
    chunks: CudaSlice<u32>,
    n_chunks: u32,
    lengths: Vec<usize>,
    trained: Vec<bool>,
    sums: Option<Sums>,
}

/// Memory for the sum of gradients over micro-batches, and the addresses of its parts.
struct Sums {
    /// Holds what the addresses point to.
    _memory: CudaSlice<f32>,
    addresses: Vec<u64>,
    table: CudaSlice<u64>,
}

impl Table {
    pub(super) fn new(rule: Rule, variables: &[Variable<'_>], device: &CudaDevice) -> Result<Self> {
        let (mut entries, mut chunks) = (Vec::new(), Vec::new());
        for (nth, variable) in variables.iter().enumerate() {
            let length = variable.value.elem_count();
            let n_moments = variable.moments.len();
            if n_moments != 0 && n_moments != rule.moments() {
                let expected = rule.moments();
                candle_core::bail!(
                    "moments of variable {nth} expected {expected}, got {n_moments}"
                );
            }
            let mut entry = [0u64; ENTRY];
            let mut put = |place: usize, tensor: &Tensor| {
                if tensor.elem_count() != length {
                    let got = tensor.elem_count();
                    candle_core::bail!(
                        "state of variable {nth} expected {length} numbers, got {got}"
                    );
                }
                entry[place] = address(tensor, device)?;
                Ok(())
            };
            put(0, variable.value)?;
            variable.average.map_or(Ok(()), |average| put(1, average))?;
            variable.moments.iter().enumerate().try_for_each(|(i, moment)| put(2 + i, moment))?;
            entry[ENTRY - 1] = length as u64;
            entries.extend_from_slice(&entry);
            for chunk in 0..length.div_ceil(CHUNK) {
                chunks.extend_from_slice(&[number(nth)?, number(chunk)?]);
            }
        }
        if chunks.is_empty() {
            candle_core::bail!("optimiser expected variables with numbers, got none");
        }
        let n_chunks = number(chunks.len() / 2)?;
        if n_chunks > i32::MAX as u32 {
            candle_core::bail!("optimiser expected at most {} chunks, got {n_chunks}", i32::MAX);
        }
        Ok(Self {
            entries: device.clone_htod(&entries)?,
            chunks: device.clone_htod(&chunks)?,
            n_chunks,
            lengths: variables.iter().map(|variable| variable.value.elem_count()).collect(),
            trained: variables.iter().map(|variable| !variable.moments.is_empty()).collect(),
            sums: None,
        })
    }

    pub(super) fn entries(&self) -> &CudaSlice<u64> {
        &self.entries
    }

    pub(super) fn chunks(&self) -> &CudaSlice<u32> {
        &self.chunks
    }

    pub(super) fn n_chunks(&self) -> u32 {
        self.n_chunks
    }

    /// The address of each gradient, 0 for none.
    pub(super) fn gradients(
        &self,
        gradients: &[Option<Tensor>],
        device: &CudaDevice,
    ) -> Result<Vec<u64>> {
        if gradients.len() != self.lengths.len() {
            let expected = self.lengths.len();
            candle_core::bail!("expected {expected} gradients, got {}", gradients.len());
        }
        let one = |(nth, grad): (usize, &Option<Tensor>)| {
            let Some(grad) = grad else { return Ok(0) };
            let (expected, got) = (self.lengths[nth], grad.elem_count());
            if expected != got {
                candle_core::bail!("gradient {nth} expected {expected} numbers, got {got}");
            }
            address(grad, device)
        };
        gradients.iter().enumerate().map(one).collect()
    }

    /// Makes room for sums, if there is none yet.
    pub(super) fn make_sums(&mut self, device: &CudaDevice) -> Result<()> {
        if self.sums.is_some() {
            return Ok(());
        }
        let (mut offsets, mut total) = (Vec::new(), 0);
        for (length, trained) in self.lengths.iter().zip(&self.trained) {
            offsets.push(trained.then_some(total));
            total += if *trained { length.next_multiple_of(SUM_ALIGNMENT) } else { 0 };
        }
        // SAFETY: `add_up` writes a sum as a whole, in the first micro-batch, before anything reads it.
        let mut memory = unsafe { device.alloc::<f32>(total) }?;
        let stream = device.cuda_stream();
        let (start, recorded) = memory.device_ptr_mut(&stream);
        drop(recorded);
        let at = |offset: &Option<usize>| offset.map_or(0, |offset| start + 4 * offset as u64);
        let addresses: Vec<u64> = offsets.iter().map(at).collect();
        let table = device.clone_htod(&addresses)?;
        self.sums = Some(Sums { _memory: memory, addresses, table });
        Ok(())
    }

    /// The addresses of the sums, on the device.
    pub(super) fn sum_table(&self) -> Result<&CudaSlice<u64>> {
        match &self.sums {
            Some(sums) => Ok(&sums.table),
            None => candle_core::bail!("sums of gradients were asked for before there were any"),
        }
    }

    /// The addresses of the sums of variables that have a gradient.
    pub(super) fn sums_of(&self, present: &[bool]) -> Vec<u64> {
        let addresses = self.sums.as_ref().map_or(&[][..], |sums| &sums.addresses);
        let one = |(address, present): (&u64, &bool)| if *present { *address } else { 0 };
        addresses.iter().zip(present).map(one).collect()
    }
}

/// Where the numbers of a contiguous `f32` tensor on `device` begin.
///
/// The address holds as long as the tensor, and is good for work on the device's own stream, which is
/// also where the memory is freed.
pub(super) fn address(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!(
            "optimiser expected tensors on a CUDA device, got {:?}",
            tensor.device()
        );
    };
    if storage.device.id() != device.id() {
        candle_core::bail!("optimiser expected {device:?}, got {:?}", storage.device);
    }
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!("optimiser expected contiguous tensors, got {layout:?}");
    };
    let stream = device.cuda_stream();
    let (address, recorded) = storage.as_cuda_slice::<f32>()?.device_ptr(&stream);
    // One stream orders all work on it without the event.
    drop(recorded);
    Ok(address + 4 * start as u64)
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| candle_core::Error::msg(format!("{n} chunks are too many")))
}
