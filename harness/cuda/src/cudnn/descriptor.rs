//! Descriptors of cuDNN's graph interface, with typed attributes.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;

use candle_core::cuda_backend::cudarc::cudnn::sys;

/// A call that cuDNN refused.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) doing: &'static str,
    pub(super) status: u32,
    text: String,
}

impl Failure {
    /// # Safety
    /// cuDNN must have been opened, that is, have answered a call with success.
    unsafe fn new(doing: &'static str, status: sys::cudnnStatus_t) -> Self {
        let mut detail = [0 as c_char; 512];
        // SAFETY: cuDNN is there, by this function's contract. The name it returns is a constant; into
        // the buffer it writes at most its size, a zero at the end included.
        let (name, detail) = unsafe {
            let name = CStr::from_ptr(sys::cudnnGetErrorString(status)).to_string_lossy();
            sys::cudnnGetLastErrorString(detail.as_mut_ptr(), detail.len() - 1);
            (name, CStr::from_ptr(detail.as_ptr()).to_string_lossy().into_owned())
        };
        let detail = detail.lines().next().unwrap_or_default().trim();
        let text = if detail.is_empty() { name.into_owned() } else { format!("{name}: {detail}") };
        Self { doing, status: status as u32, text }
    }

    /// Turns a status into a result.
    ///
    /// # Safety
    /// As for [`Failure::new`].
    pub(super) unsafe fn check(
        doing: &'static str,
        status: sys::cudnnStatus_t,
    ) -> Result<(), Self> {
        if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
            return Ok(());
        }
        // SAFETY: passed on.
        Err(unsafe { Self::new(doing, status) })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.doing, self.text, self.status)
    }
}

/// What an attribute can be made of: values that lie in memory as cuDNN wants them under `TYPE`.
///
/// # Safety
/// The layout has to be that of `TYPE` in cuDNN's table of attribute types.
pub(super) unsafe trait Value {
    const TYPE: sys::cudnnBackendAttributeType_t;
}

/// A descriptor as an attribute of another one.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Reference(sys::cudnnBackendDescriptor_t);

// SAFETY: `int64_t`.
unsafe impl Value for i64 {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_INT64;
}

// SAFETY: `float`.
unsafe impl Value for f32 {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_FLOAT;
}

// SAFETY: `void *`.
unsafe impl Value for *mut c_void {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_VOID_PTR;
}

// SAFETY: `cudnnHandle_t`.
unsafe impl Value for sys::cudnnHandle_t {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_HANDLE;
}

// SAFETY: the enumeration, of the size of C's.
unsafe impl Value for sys::cudnnDataType_t {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_DATA_TYPE;
}

// SAFETY: the enumeration, of the size of C's.
unsafe impl Value for sys::cudnnConvolutionMode_t {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_CONVOLUTION_MODE;
}

// SAFETY: the enumeration, of the size of C's.
unsafe impl Value for sys::cudnnBackendHeurMode_t {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_HEUR_MODE;
}

// SAFETY: `cudnnBackendDescriptor_t`, by `repr(transparent)`.
unsafe impl Value for Reference {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_BACKEND_DESCRIPTOR;
}

/// A numerical note as the number that it is: a newer cuDNN may have notes that cudarc's enumeration
/// lacks.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(super) struct Note(pub(super) u32);

// SAFETY: an enumeration of C has the size of `unsigned`.
unsafe impl Value for Note {
    const TYPE: sys::cudnnBackendAttributeType_t =
        sys::cudnnBackendAttributeType_t::CUDNN_TYPE_NUMERICAL_NOTE;
}

/// One of cuDNN's descriptors; destroyed on drop. One that is set as an attribute of another has to
/// outlive it, which [`super::graph::Graph`] and [`super::plan::Plan`] see to.
#[derive(Debug)]
pub(super) struct Descriptor(sys::cudnnBackendDescriptor_t);

// SAFETY: cuDNN does not tie descriptors to a thread, and this type is not shared between threads.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// An empty descriptor. Only to be called once cuDNN has been opened, which the handle that all
    /// callers hold is the proof of.
    pub(super) fn new(
        _handle: sys::cudnnHandle_t,
        kind: sys::cudnnBackendDescriptorType_t,
    ) -> Result<Self, Failure> {
        let mut raw: sys::cudnnBackendDescriptor_t = std::ptr::null_mut();
        // SAFETY: cuDNN writes one pointer; it has been opened, as the handle shows.
        unsafe {
            let status = sys::cudnnBackendCreateDescriptor(kind, &raw mut raw);
            Failure::check("create a descriptor", status)?;
        }
        Ok(Self(raw))
    }

    pub(super) fn reference(&self) -> Reference {
        Reference(self.0)
    }

    pub(super) fn raw(&self) -> sys::cudnnBackendDescriptor_t {
        self.0
    }

    /// Sets an attribute to some values.
    pub(super) fn set_all<V: Value>(
        &mut self,
        name: sys::cudnnBackendAttributeName_t,
        values: &[V],
        doing: &'static str,
    ) -> Result<(), Failure> {
        // SAFETY: cuDNN reads as many values as it is told, of the type that `V` vouches for, and copies
        // them before it returns.
        unsafe {
            let status = sys::cudnnBackendSetAttribute(
                self.0,
                name,
                V::TYPE,
                values.len() as i64,
                values.as_ptr().cast(),
            );
            Failure::check(doing, status)
        }
    }

    /// Sets an attribute to one value.
    pub(super) fn set<V: Value>(
        &mut self,
        name: sys::cudnnBackendAttributeName_t,
        value: V,
        doing: &'static str,
    ) -> Result<(), Failure> {
        self.set_all(name, &[value], doing)
    }

    /// Ends the setting of attributes and has them checked.
    pub(super) fn finalize(self, doing: &'static str) -> Result<Self, Failure> {
        // SAFETY: the descriptor is valid until it is dropped.
        unsafe { Failure::check(doing, sys::cudnnBackendFinalize(self.0)) }?;
        Ok(self)
    }

    /// How many values an attribute has.
    pub(super) fn count<V: Value>(
        &self,
        name: sys::cudnnBackendAttributeName_t,
        doing: &'static str,
    ) -> Result<usize, Failure> {
        let mut count = 0_i64;
        // SAFETY: with room for no values cuDNN writes the count only.
        unsafe {
            let status = sys::cudnnBackendGetAttribute(
                self.0,
                name,
                V::TYPE,
                0,
                &raw mut count,
                std::ptr::null_mut(),
            );
            Failure::check(doing, status)?;
        }
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Reads up to `values.len()` values of an attribute and returns how many were written. Where the
    /// values are descriptors, `values` has to name existing ones, which cuDNN fills.
    pub(super) fn get<V: Value>(
        &self,
        name: sys::cudnnBackendAttributeName_t,
        values: &mut [V],
        doing: &'static str,
    ) -> Result<usize, Failure> {
        let mut count = 0_i64;
        // SAFETY: cuDNN writes at most as many values as it is told, of the type that `V` vouches for.
        unsafe {
            let status = sys::cudnnBackendGetAttribute(
                self.0,
                name,
                V::TYPE,
                values.len() as i64,
                &raw mut count,
                values.as_mut_ptr().cast(),
            );
            Failure::check(doing, status)?;
        }
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by cuDNN, and destroyed here only. There is nobody to tell of a failure.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}
