//! Plans: an engine made ready for a graph, and its execution.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind,
};

use super::descriptor::{Descriptor, Failure};
use super::engines::Configuration;
use super::graph::{W, X, Y};
use crate::conv::Pointers;

/// An engine that is ready to run. The graph that its configuration is for has to outlive it.
#[derive(Debug)]
pub(super) struct Plan {
    // Fields are dropped in this order: the plan before what it refers to.
    plan: Descriptor,
    configuration: Configuration,
    /// Bytes that an execution needs.
    pub(super) workspace: usize,
}

impl Plan {
    /// Prepares the engine, which may compile a kernel.
    ///
    /// # Errors
    /// The engine cannot do it after all, which is common among those that heuristics list.
    pub(super) fn new(
        handle: sys::cudnnHandle_t,
        configuration: Configuration,
    ) -> Result<Self, Failure> {
        let doing = "prepare an engine";
        let mut plan = Descriptor::new(handle, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle, doing)?;
        plan.set(
            Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            configuration.descriptor.reference(),
            doing,
        )?;
        let plan = plan.finalize(doing)?;
        let mut bytes = [0_i64];
        plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, &mut bytes, doing)?;
        let workspace = usize::try_from(bytes[0]).unwrap_or(0);
        Ok(Self { plan, configuration, workspace })
    }

    /// cuDNN's number of the engine.
    pub(super) fn engine(&self) -> i64 {
        self.configuration.engine
    }

    /// Queues the convolution on the handle's stream.
    ///
    /// # Safety
    /// `pointers` address tensors as the graph describes them and `workspace` at least as many bytes
    /// as the plan needs, all of which live until the work on the handle's stream has ended.
    pub(super) unsafe fn execute(
        &self,
        handle: sys::cudnnHandle_t,
        pointers: Pointers,
        workspace: u64,
    ) -> Result<(), Failure> {
        let doing = "name the tensors";
        let tensors = [pointers.x, pointers.w, pointers.y].map(|pointer| pointer as *mut c_void);
        let mut pack = Descriptor::new(handle, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set_all(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &[X, W, Y], doing)?;
        pack.set_all(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &tensors, doing)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, workspace as *mut c_void, doing)?;
        let pack = pack.finalize(doing)?;
        // SAFETY: both descriptors are finalised, the handle is the plan's, and the caller vouches for the
        // memory.
        unsafe {
            let status = sys::cudnnBackendExecute(handle, self.plan.raw(), pack.raw());
            Failure::check("execute", status)
        }
    }
}
