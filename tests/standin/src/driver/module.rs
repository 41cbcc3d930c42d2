//! Modules, functions and launches.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use super::codes::*;
use super::device::in_context;
use super::memory::Kind;
use super::{call, entries, memory};
use crate::api::{Handles, Outcome, lock, peek, put, refusal};
use crate::exec::{Kernel, Shape, run};
use crate::ptx::{self, Signature};
use crate::work;

const MOST_SHARED: usize = 227 << 10;
const USUAL_SHARED: usize = 48 << 10;

/// A loaded module: its text, its variables on the device, and its kernels.
pub(crate) struct Module {
    text: String,
    /// Address and bytes of each variable, in the order of translations.
    variables: Vec<(String, u64, usize)>,
    signatures: HashMap<String, Signature>,
    functions: Mutex<HashMap<String, usize>>,
}

struct Ready {
    kernel: Kernel,
    pointers: Vec<usize>,
}

pub(crate) struct Function {
    module: Arc<Module>,
    name: String,
    signature: Signature,
    ready: OnceLock<Outcome<Ready>>,
    /// What was set as the most dynamic shared memory.
    dynamic_limit: Mutex<Option<usize>>,
}

static MODULES: Handles<Module> = Handles::new("module");
static FUNCTIONS: Handles<Function> = Handles::new("function");

impl Drop for Module {
    fn drop(&mut self) {
        for (_, start, _) in &self.variables {
            // A spoiled heap would be reported elsewhere; here there is nobody to tell.
            let _ = memory().free(*start as usize);
        }
    }
}

/// The text behind a null-terminated image.
fn text_of(image: *const c_void) -> Outcome<String> {
    let start: [u8; 4] = peek(image.cast(), INVALID_IMAGE)?;
    if start == [0x7f, b'E', b'L', b'F'] || start == [0x50, 0xed, 0x55, 0xba] {
        return Err(refusal(NOT_SUPPORTED, "the image is machine code; the stand-in reads PTX"));
    }
    // SAFETY: the caller owes a null-terminated text, and it is neither of the binary formats.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    Ok(text.to_str().map_err(|_| refusal(INVALID_PTX, "the image is no text"))?.to_owned())
}

fn load(to: *mut usize, text: String) -> Outcome {
    in_context()?;
    work::forbid_during_capture("loading a module")?;
    let globals = ptx::globals(&text)?;
    let mut variables: Vec<(String, u64, usize)> = Vec::new();
    for global in &globals {
        let start = memory().allocate(global.bytes.len(), Kind::Module)?;
        // SAFETY: just allocated with this length.
        unsafe {
            std::ptr::copy_nonoverlapping(
                global.bytes.as_ptr(),
                start as *mut u8,
                global.bytes.len(),
            );
        }
        variables.push((global.name.clone(), start as u64, global.bytes.len()));
    }
    for (global, (_, start, _)) in globals.iter().zip(&variables) {
        for (offset, name, added) in &global.addresses {
            let of = variables.iter().find(|(other, ..)| other == name);
            let (_, target, _) = of.ok_or_else(|| {
                refusal(INVALID_PTX, format!("`{}` holds the address of `{name}`", global.name))
            })?;
            let value = target.wrapping_add_signed(*added);
            // SAFETY: the offset was taken from the variable's own values.
            unsafe { ((*start as usize + offset) as *mut u64).write_unaligned(value) };
        }
    }
    let signatures = ptx::signatures(&text)?.into_iter().collect();
    let module = Module { text, variables, signatures, functions: Mutex::default() };
    put(to, MODULES.insert(module), INVALID_VALUE)
}

/// A name that the caller passes.
fn name_of(name: *const c_char) -> Outcome<String> {
    peek(name, INVALID_VALUE)?;
    // SAFETY: the caller owes a null-terminated name; null is refused.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

impl Function {
    /// The compiled kernel, made at the first use.
    fn ready(&self) -> Outcome<&Ready> {
        let made = self.ready.get_or_init(|| {
            let translation = ptx::translate(&self.module.text, &self.name)?;
            if translation.shared > USUAL_SHARED {
                let line = format!(
                    "{} bytes of static shared memory, at most {USUAL_SHARED}",
                    translation.shared
                );
                return Err(refusal(INVALID_PTX, line));
            }
            let kernel = Kernel::load(&self.name, &translation)?;
            Ok(Ready { kernel, pointers: translation.pointers.into_iter().collect() })
        });
        made.as_ref()
            .map_err(|error| refusal(error.code, format!("kernel `{}`: {}", self.name, error.line)))
    }

    fn most_threads(&self) -> u64 {
        self.signature.max_threads.unwrap_or(1024).min(1024)
    }

    fn most_dynamic(&self, fixed: usize) -> usize {
        lock(&self.dynamic_limit).unwrap_or(USUAL_SHARED.saturating_sub(fixed))
    }

    fn check_shape(&self, shape: Shape, fixed: usize) -> Outcome {
        let bad =
            |code, line: String| Err(refusal(code, format!("kernel `{}`: {line}", self.name)));
        let Shape { grid, block, dynamic_shared } = shape;
        if grid.contains(&0) || block.contains(&0) {
            return bad(INVALID_VALUE, format!("grid {grid:?} of blocks {block:?} has a 0"));
        }
        if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return bad(INVALID_VALUE, format!("grid {grid:?} is larger than the device allows"));
        }
        let threads: u64 = block.iter().map(|extent| u64::from(*extent)).product();
        if threads > 1024 || block[2] > 64 {
            return bad(INVALID_VALUE, format!("blocks of {block:?}, at most 1024 threads, z 64"));
        }
        if threads > self.most_threads() {
            let line = format!("{threads} threads, declared for at most {}", self.most_threads());
            return bad(INVALID_VALUE, line);
        }
        if let Some(required) = self.signature.required
            && required != block
        {
            return bad(INVALID_VALUE, format!("blocks of {block:?}, declared for {required:?}"));
        }
        let most = self.most_dynamic(fixed);
        if dynamic_shared > most || dynamic_shared + fixed > MOST_SHARED {
            let line = format!(
                "{dynamic_shared} bytes of dynamic shared memory (and {fixed} static), at most \
                 {most} unless set by an attribute"
            );
            return bad(INVALID_VALUE, line);
        }
        Ok(())
    }

    /// Copies the arguments, as the driver does before the call returns.
    fn arguments(&self, params: *const *const c_void, pointers: &[usize]) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0_u8; self.signature.param_bytes];
        for (at, (offset, len, align)) in self.signature.params.iter().enumerate() {
            let from: *const c_void = peek(params.wrapping_add(at), INVALID_VALUE)?;
            if from.is_null() || !(from as usize).is_multiple_of((*align).min(8)) {
                let line = format!(
                    "kernel `{}`, argument {at} of {}: {len} bytes at {from:p}, which is null or \
                     misaligned",
                    self.name,
                    self.signature.params.len()
                );
                return Err(refusal(INVALID_VALUE, line));
            }
            // SAFETY: the caller owes as many bytes as the kernel declares for the argument.
            let value = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), *len) };
            bytes[*offset..offset + len].copy_from_slice(value);
            if pointers.contains(&at) {
                let address = u64::from_le_bytes(value.try_into().expect("an address"));
                self.check_pointer(at, address as usize)?;
            }
        }
        Ok(bytes)
    }

    /// An address of global memory has to be one, or null. The real driver does not look; a wrong
    /// type or order of arguments would show there as an illegal access, if at all.
    fn check_pointer(&self, at: usize, address: usize) -> Outcome {
        let memory = memory();
        if address == 0 || memory.could_be_pointer(address) {
            return Ok(());
        }
        let line = format!(
            "kernel `{}`, argument {at} of {} is used as a pointer, got {address:#x}: {}",
            self.name,
            self.signature.params.len(),
            memory.explain(address)
        );
        Err(refusal(ILLEGAL_ADDRESS, line))
    }
}

fn launch(function: usize, shape: Shape, stream: usize, params: *const *const c_void) -> Outcome {
    in_context()?;
    let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
    let ready = function.ready()?;
    function.check_shape(shape, ready.kernel.shared)?;
    let arguments = function.arguments(params, &ready.pointers)?;
    let Shape { grid, block, dynamic_shared } = shape;
    let name = format!("{} {grid:?} x {block:?}, {dynamic_shared} bytes", function.name);
    work::submit(stream, name, move || {
        let ready = function.ready()?;
        let globals: Vec<u64> =
            function.module.variables.iter().map(|(_, start, _)| *start).collect();
        run(&ready.kernel, shape, &arguments, &globals)
    })
}

fn attribute(function: &Function, which: c_uint) -> Outcome<usize> {
    let kernel = &function.ready()?.kernel;
    Ok(match which {
        0 => function.most_threads() as usize,
        1 => kernel.shared,
        2 => 0,
        3 => kernel.local,
        4 => 32,
        5 | 6 => 90,
        7 | 10 | 14 => 0,
        8 => function.most_dynamic(kernel.shared),
        _ => return Err(refusal(INVALID_VALUE, format!("function attribute {which}"))),
    })
}

/// Blocks that fit on a multiprocessor, by threads and shared memory.
fn resident(function: &Function, block: c_int, dynamic: usize) -> Outcome<c_int> {
    if block <= 0 || block as u64 > function.most_threads() {
        return Err(refusal(INVALID_VALUE, format!("blocks of {block} threads")));
    }
    let kernel = &function.ready()?.kernel;
    let by_threads = 2048 / (block as usize).next_multiple_of(32);
    let by_shared = (228 << 10) / (kernel.shared + dynamic + 1024);
    Ok(by_threads.min(by_shared).min(32) as c_int)
}

entries! { call;
    fn cuModuleLoadData(module: *mut usize, image: *const c_void) {
        load(module, text_of(image)?)
    }
    fn cuModuleLoadDataEx(module: *mut usize, image: *const c_void, _count: c_uint,
        _options: *mut c_uint, _values: *mut *mut c_void) {
        load(module, text_of(image)?)
    }
    fn cuModuleLoad(module: *mut usize, path: *const c_char) {
        let path = name_of(path)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| refusal(FILE_NOT_FOUND, format!("`{path}`: {error}")))?;
        load(module, text)
    }
    fn cuModuleUnload(module: usize) {
        in_context()?;
        let module = MODULES.remove(module, INVALID_HANDLE)?;
        let functions: Vec<usize> = lock(&module.functions).values().copied().collect();
        functions.into_iter().try_for_each(|handle| {
            FUNCTIONS.remove(handle, INVALID_HANDLE).map(|_| ())
        })
    }
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        in_context()?;
        let module = MODULES.get(module, INVALID_HANDLE)?;
        let name = name_of(name)?;
        let known = lock(&module.functions).get(&name).copied();
        if let Some(handle) = known {
            return put(function, handle, INVALID_VALUE);
        }
        let signature = module.signatures.get(&name).cloned();
        let signature = signature
            .ok_or_else(|| refusal(NOT_FOUND, format!("the module has no kernel `{name}`")))?;
        let made = Function {
            module: module.clone(),
            name: name.clone(),
            signature,
            ready: OnceLock::new(),
            dynamic_limit: Mutex::new(None),
        };
        let handle = FUNCTIONS.insert(made);
        lock(&module.functions).insert(name, handle);
        put(function, handle, INVALID_VALUE)
    }
    fn cuModuleGetGlobal_v2(start: *mut u64, len: *mut usize, module: usize, name: *const c_char) {
        in_context()?;
        let module = MODULES.get(module, INVALID_HANDLE)?;
        let name = name_of(name)?;
        let found = module.variables.iter().find(|(other, ..)| *other == name);
        let (_, at, bytes) = found
            .ok_or_else(|| refusal(NOT_FOUND, format!("the module has no variable `{name}`")))?;
        if !len.is_null() {
            put(len, *bytes, INVALID_VALUE)?;
        }
        if start.is_null() { Ok(()) } else { put(start, *at, INVALID_VALUE) }
    }
    fn cuFuncGetAttribute(value: *mut c_int, which: c_uint, function: usize) {
        let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
        put(value, attribute(&function, which)? as c_int, INVALID_VALUE)
    }
    fn cuFuncSetAttribute(function: usize, which: c_uint, value: c_int) {
        let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
        let fixed = function.ready()?.kernel.shared;
        match which {
            8 => {
                let most = MOST_SHARED - fixed;
                if value < 0 || value as usize > most {
                    let line = format!("dynamic shared memory of at most {most}, got {value}");
                    return Err(refusal(INVALID_VALUE, line));
                }
                *lock(&function.dynamic_limit) = Some(value as usize);
                Ok(())
            }
            9 | 14 | 15 => Ok(()),
            _ => Err(refusal(INVALID_VALUE, format!("function attribute {which} cannot be set"))),
        }
    }
    fn cuFuncSetCacheConfig(function: usize, _config: c_uint) {
        FUNCTIONS.get(function, INVALID_HANDLE).map(|_| ())
    }
    fn cuLaunchKernel(function: usize, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: usize,
        params: *const *const c_void, extra: *const *const c_void) {
        if !extra.is_null() {
            return Err(refusal(NOT_SUPPORTED, "arguments in one buffer"));
        }
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared as usize,
        };
        launch(function, shape, stream, params)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut c_int, function: usize,
        block: c_int, dynamic: usize) {
        let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
        put(count, resident(&function, block, dynamic)?, INVALID_VALUE)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count: *mut c_int, function: usize,
        block: c_int, dynamic: usize, _flags: c_uint) {
        let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
        put(count, resident(&function, block, dynamic)?, INVALID_VALUE)
    }
    fn cuOccupancyMaxPotentialBlockSize(grid: *mut c_int, block: *mut c_int, function: usize,
        _size: *const c_void, dynamic: usize, limit: c_int) {
        let function = FUNCTIONS.get(function, INVALID_HANDLE)?;
        let most = function.most_threads() as c_int;
        let chosen = if limit > 0 { most.min(limit) } else { most };
        put(block, chosen, INVALID_VALUE)?;
        put(grid, 132 * resident(&function, chosen, dynamic)?, INVALID_VALUE)
    }
}
