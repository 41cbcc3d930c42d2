//! One kernel, with the functions that it calls, as C.
//!
//! Registers become local variables that hold bits; each instruction becomes one statement that
//! reads them as the type that it names. A block's threads share no C stack: those that meet at
//! barriers are coroutines, and the others run in plain loops.

mod arithmetic;
mod control;
mod convert;
mod memory;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use super::lex::Number;
use super::parse::{Instruction, Operand, Statement, statements};
use super::scan::{Callable, Outline, Variable};
use crate::api::{Outcome, refusal};
use crate::driver::codes::{INVALID_PTX, NOT_SUPPORTED};
use types::{Kind, Type};

/// What a kernel's translation is.
#[derive(Debug)]
pub(crate) struct Translation {
    pub(crate) source: String,
    /// Bytes of shared memory that the kernel declares; dynamic memory comes behind.
    pub(crate) shared: usize,
    pub(crate) local: usize,
    /// Whether its threads wait for each other.
    pub(crate) meets: bool,
    /// Which parameters, by position, are used as addresses of global memory.
    pub(crate) pointers: BTreeSet<usize>,
    /// How many instructions keep the allocation that they touched last.
    pub(crate) sites: usize,
}

/// Where a declared name is.
#[derive(Debug, Clone)]
enum Place {
    /// Offset in the kernel's parameters.
    Param(usize),
    /// An array of the C function.
    Bytes(String),
    /// Offset in the block's shared memory.
    Shared(usize),
    /// Position in the table of the module's variables.
    Global(usize),
}

#[derive(Default)]
struct Scope {
    registers: HashMap<String, usize>,
    families: Vec<(String, usize, usize)>,
    places: HashMap<String, Place>,
}

struct Emitter<'m> {
    outline: &'m Outline<'m>,
    out: String,
    scopes: Vec<Scope>,
    targets: BTreeMap<String, Vec<String>>,
    sites: usize,
    local: usize,
    in_kernel: bool,
}

fn unsupported(instruction: &Instruction) -> crate::api::Refusal {
    let line = format!("`{}` is not translated by the stand-in", instruction.text());
    refusal(NOT_SUPPORTED, line)
}

/// A name of PTX as one of C.
fn mangle(prefix: &str, name: &str) -> String {
    let mut mangled = String::from(prefix);
    for character in name.chars() {
        match character {
            '%' => mangled.push_str("p_"),
            '$' => mangled.push_str("d_"),
            '.' => mangled.push_str("o_"),
            _ => mangled.push(character),
        }
    }
    mangled
}

/// Offsets of parameters, and the bytes of all.
pub(super) fn param_layout(params: &[Variable]) -> (Vec<usize>, usize) {
    let mut end: usize = 0;
    let offsets = params.iter().map(|param| {
        let offset = end.next_multiple_of(param.align);
        end = offset + param.len;
        offset
    });
    (offsets.collect(), end)
}

/// The kernel's own statements and those of every function that it calls, callees first.
fn reachable<'m>(
    outline: &'m Outline<'_>,
    kernel: &'m Callable,
) -> Outcome<Vec<(&'m Callable, Vec<Statement>)>> {
    fn visit<'m>(
        outline: &'m Outline<'_>,
        callable: &'m Callable,
        path: &mut Vec<String>,
        found: &mut Vec<(&'m Callable, Vec<Statement>)>,
    ) -> Outcome {
        if path.contains(&callable.name) {
            let line = format!("`{}` calls itself, which is not translated", callable.name);
            return Err(refusal(NOT_SUPPORTED, line));
        }
        let Some(body) = callable.body.clone() else { return Ok(()) };
        if found.iter().any(|(known, _)| known.name == callable.name) {
            return Ok(());
        }
        let parsed = statements(&outline.tokens[body])?;
        path.push(callable.name.clone());
        for statement in &parsed {
            if let Statement::Instruction(instruction) = statement
                && instruction.name[0] == "call"
            {
                for operand in &instruction.operands {
                    if let Operand::Name(name) = operand
                        && let Some(callee) = outline
                            .callables
                            .iter()
                            .find(|other| other.name == *name && other.body.is_some())
                    {
                        visit(outline, callee, path, found)?;
                    }
                }
            }
        }
        path.pop();
        found.push((callable, parsed));
        Ok(())
    }
    let mut found = Vec::new();
    visit(outline, kernel, &mut Vec::new(), &mut found)?;
    Ok(found)
}

/// Whether threads wait for each other at it.
fn meets(instruction: &Instruction) -> bool {
    matches!(instruction.name[0].as_str(), "bar" | "barrier" | "shfl" | "vote" | "match" | "redux")
}

/// Translates one kernel.
///
/// # Errors
/// No kernel has the name; it uses what is not translated; it is no PTX.
pub(crate) fn translate(outline: &Outline<'_>, kernel: &Callable) -> Outcome<Translation> {
    let bodies = reachable(outline, kernel)?;
    let all = || bodies.iter().flat_map(|(_, body)| body);
    let mut emitter = Emitter {
        outline,
        out: String::new(),
        scopes: vec![Scope::default()],
        targets: BTreeMap::new(),
        sites: 0,
        local: 0,
        in_kernel: false,
    };
    let shared = emitter.lay_out_shared(all());
    for (position, variable) in
        outline.variables.iter().filter(|variable| variable.space != "shared").enumerate()
    {
        emitter.scopes[0].places.insert(variable.name.clone(), Place::Global(position));
    }
    for (callable, body) in &bodies {
        emitter.callable(callable, body)?;
    }
    let meeting = all().any(
        |statement| matches!(statement, Statement::Instruction(instruction) if meets(instruction)),
    );
    emitter.entries(&mangle("f_", &kernel.name));
    Ok(Translation {
        source: format!("{}\n{}", include_str!("../prelude.c"), emitter.out),
        shared,
        local: emitter.local,
        meets: meeting,
        pointers: pointers(kernel, &bodies.last().expect("the kernel itself").1),
        sites: emitter.sites,
    })
}

/// Parameters that the kernel loads and converts to addresses of global memory.
fn pointers(kernel: &Callable, body: &[Statement]) -> BTreeSet<usize> {
    let mut loaded: HashMap<&str, usize> = HashMap::new();
    let mut found = BTreeSet::new();
    for statement in body {
        let Statement::Instruction(instruction) = statement else { continue };
        let parts: Vec<&str> = instruction.name.iter().map(String::as_str).collect();
        match (parts.as_slice(), instruction.operands.as_slice()) {
            (["ld", "param", "u64" | "b64"], [Operand::Name(register), Operand::Address(from)]) => {
                if let Operand::Name(name) = &**from
                    && let Some(at) = kernel.params.iter().position(|param| param.name == *name)
                {
                    loaded.insert(register, at);
                }
            }
            (["cvta", "to", "global", _], [_, Operand::Name(register)]) => {
                found.extend(loaded.get(register.as_str()));
            }
            _ => {}
        }
    }
    found
}

impl<'m> Emitter<'m> {
    /// Places the shared variables that the statements declare or name.
    fn lay_out_shared<'s>(&mut self, all: impl Iterator<Item = &'s Statement>) -> usize {
        let mut end: usize = 0;
        let mut dynamic = Vec::new();
        let mut names = BTreeSet::new();
        let mut declared = Vec::new();
        for statement in all {
            match statement {
                Statement::Variable(variable) if variable.space == "shared" => {
                    declared.push(variable.clone());
                }
                Statement::Instruction(instruction) => {
                    instruction.operands.iter().for_each(|operand| collect(operand, &mut names));
                }
                _ => {}
            }
        }
        let used =
            |variable: &&Variable| variable.space == "shared" && names.contains(&variable.name);
        declared.extend(self.outline.variables.iter().filter(used).cloned());
        for variable in declared {
            if variable.len == 0 {
                dynamic.push(variable.name);
                continue;
            }
            end = end.next_multiple_of(variable.align);
            self.scopes[0].places.insert(variable.name, Place::Shared(end));
            end += variable.len;
        }
        if !dynamic.is_empty() {
            end = end.next_multiple_of(16);
        }
        for name in dynamic {
            self.scopes[0].places.insert(name, Place::Shared(end));
        }
        end
    }

    fn callable(&mut self, callable: &Callable, body: &[Statement]) -> Outcome {
        let mut scope = Scope::default();
        let mut arguments = String::from("struct context *c, struct thread *t");
        if callable.is_kernel {
            let (offsets, _) = param_layout(&callable.params);
            for (param, offset) in callable.params.iter().zip(offsets) {
                scope.places.insert(param.name.clone(), Place::Param(offset));
            }
        } else {
            for param in callable.returns.iter().chain(&callable.params) {
                let name = mangle("v_", &param.name);
                let _ = write!(arguments, ", u8 *{name}");
                scope.places.insert(param.name.clone(), Place::Bytes(name));
            }
        }
        self.in_kernel = callable.is_kernel;
        self.targets.clear();
        self.scopes.push(scope);
        let name = mangle("f_", &callable.name);
        let _ = writeln!(self.out, "static void {name}({arguments}) {{");
        self.out.push_str("  u64 cc = 0; (void)cc; (void)c; (void)t;\n");
        for statement in body {
            self.statement(statement)?;
        }
        self.out.push_str("}\n");
        self.scopes.pop();
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Outcome {
        match statement {
            Statement::Open => {
                self.scopes.push(Scope::default());
                self.out.push_str("{\n");
            }
            Statement::Close => {
                self.scopes.pop();
                self.out.push_str("}\n");
            }
            Statement::Label(name) => {
                let _ = writeln!(self.out, "{}:;", mangle("L_", name));
            }
            Statement::Register(bytes, name, count) => self.registers(*bytes, name, *count),
            Statement::Variable(variable) if variable.space == "shared" => {}
            Statement::Variable(variable) => {
                let name = mangle("v_", &variable.name);
                let (len, align) = (variable.len.max(1), variable.align);
                let _ = writeln!(self.out, "u8 {name}[{len}] __attribute__((aligned({align})));");
                self.local += variable.len;
                let scope = self.scopes.last_mut().expect("a scope is open");
                scope.places.insert(variable.name.clone(), Place::Bytes(name));
            }
            Statement::Targets(name, labels) => {
                self.targets.insert(name.clone(), labels.clone());
            }
            Statement::Instruction(instruction) => {
                let code = self.instruction(instruction)?;
                match &instruction.guard {
                    Some((predicate, negated)) => {
                        let predicate = self.value(&Operand::Name(predicate.clone()))?;
                        let not = if *negated { "!" } else { "" };
                        let _ = writeln!(self.out, "if ({not}{predicate}) {{ {code} }}");
                    }
                    None => {
                        let _ = writeln!(self.out, "{{ {code} }}");
                    }
                }
            }
        }
        Ok(())
    }

    fn registers(&mut self, bytes: usize, name: &str, count: Option<usize>) {
        let bits = bytes * 8;
        let scope = self.scopes.last_mut().expect("a scope is open");
        let c_type = if bits == 128 { "u128".into() } else { format!("u{bits}") };
        match count {
            None => {
                scope.registers.insert(name.into(), bytes);
                let _ = writeln!(self.out, "{c_type} {};", mangle("r_", name));
            }
            Some(count) => {
                scope.families.push((name.into(), count, bytes));
                let all: Vec<String> =
                    (0..count).map(|at| format!("{}{at}", mangle("r_", name))).collect();
                if !all.is_empty() {
                    let _ = writeln!(self.out, "{c_type} {};", all.join(", "));
                }
            }
        }
    }

    /// Bytes of a register, if it is one.
    fn register(&self, name: &str) -> Option<usize> {
        self.scopes.iter().rev().find_map(|scope| {
            scope.registers.get(name).copied().or_else(|| {
                scope.families.iter().find_map(|(family, count, bytes)| {
                    let number: usize = name.strip_prefix(family.as_str())?.parse().ok()?;
                    (number < *count).then_some(*bytes)
                })
            })
        })
    }

    fn place(&self, name: &str) -> Option<&Place> {
        self.scopes.iter().rev().find_map(|scope| scope.places.get(name))
    }

    /// An operand's bits, as an expression of C.
    fn value(&self, operand: &Operand) -> Outcome<String> {
        match operand {
            Operand::Number(Number::Integer(value)) => Ok(integer(*value)),
            Operand::Number(Number::Single(bits)) => Ok(format!("0x{bits:x}u")),
            Operand::Number(Number::Double(bits)) => Ok(format!("0x{bits:x}ull")),
            Operand::Not(name) => Ok(format!("(!{})", self.value(&Operand::Name(name.clone()))?)),
            Operand::Sum(base, offset) => {
                Ok(format!("((u64){} + ({offset}ll))", self.value(base)?))
            }
            Operand::Name(name) => {
                if self.register(name).is_some() {
                    return Ok(mangle("r_", name));
                }
                if let Some(place) = self.place(name) {
                    return Ok(match place {
                        Place::Param(offset) => format!("((u64)c->params + {offset})"),
                        Place::Bytes(name) => format!("((u64){name})"),
                        Place::Shared(offset) => format!("{offset}ull"),
                        Place::Global(position) => format!("c->globals[{position}]"),
                    });
                }
                control::special(name).map(str::to_owned).ok_or_else(|| {
                    refusal(NOT_SUPPORTED, format!("`{name}` is not known to the stand-in"))
                })
            }
            _ => Err(refusal(INVALID_PTX, format!("PTX: {operand:?} as a value"))),
        }
    }

    /// An operand as a number of the type.
    fn read(&self, operand: &Operand, kind: Type) -> Outcome<String> {
        if let (Operand::Number(Number::Double(bits)), Kind::F, 32) =
            (operand, kind.kind, kind.bits)
        {
            let single = (f64::from_bits(*bits) as f32).to_bits();
            return Ok(kind.number(&format!("0x{single:x}u")));
        }
        if let (Operand::Number(Number::Single(bits)), Kind::F, 64) =
            (operand, kind.kind, kind.bits)
        {
            let double = f64::from(f32::from_bits(*bits)).to_bits();
            return Ok(kind.number(&format!("0x{double:x}ull")));
        }
        Ok(kind.number(&self.value(operand)?))
    }

    /// A statement that stores a number of the type in a register.
    fn write(&self, to: &Operand, kind: Type, value: &str) -> Outcome<String> {
        let Operand::Name(name) = to else {
            return Err(refusal(INVALID_PTX, format!("PTX: {to:?} as a destination")));
        };
        if name == "_" {
            return Ok(format!("(void)({value});"));
        }
        if self.register(name).is_none() {
            return Err(refusal(INVALID_PTX, format!("PTX: `{name}` is no register")));
        }
        Ok(format!("{} = {};", mangle("r_", name), kind.to_bits(value)))
    }

    fn entries(&mut self, kernel: &str) {
        let _ = write!(
            self.out,
            r"
void standin_thread(struct context *c, struct thread *t) {{ {kernel}(c, t); }}
void standin_grid(struct context *c, struct thread *t) {{
  for (u32 bz = 0; bz < c->nctaid[2]; bz++) for (u32 by = 0; by < c->nctaid[1]; by++) for (u32 bx = 0; bx < c->nctaid[0]; bx++) {{
    c->ctaid[0] = bx; c->ctaid[1] = by; c->ctaid[2] = bz; c->epoch++;
    if (c->shared_len) memset(c->shared, 0xff, c->shared_len);
    u32 n = 0;
    for (u32 z = 0; z < c->ntid[2]; z++) for (u32 y = 0; y < c->ntid[1]; y++) for (u32 x = 0; x < c->ntid[0]; x++, n++) {{
      t->tid[0] = x; t->tid[1] = y; t->tid[2] = z; t->linear = n; t->lane = n & 31; t->warp = n >> 5;
      {kernel}(c, t);
    }}
  }}
}}
"
        );
    }
}

/// The names that an operand mentions.
fn collect(operand: &Operand, names: &mut BTreeSet<String>) {
    match operand {
        Operand::Name(name) => {
            names.insert(name.clone());
        }
        Operand::Sum(inner, _) | Operand::Address(inner) => collect(inner, names),
        Operand::List(all) => all.iter().for_each(|one| collect(one, names)),
        _ => {}
    }
}

fn integer(value: i128) -> String {
    // Bits are what counts: a negative number is written as the unsigned one of 64 bits.
    format!("0x{:x}ull", value as u64)
}
