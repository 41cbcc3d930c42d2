//! Loads, stores, atomics and addresses.

use super::super::parse::{Instruction, Operand};
use super::types::{Kind, Type, unsigned};
use super::{Emitter, Place, unsupported};
use crate::api::{Outcome, refusal};
use crate::driver::codes::INVALID_PTX;

/// The address space that an instruction names.
fn space(instruction: &Instruction) -> &str {
    let known = ["global", "shared", "local", "param", "const"];
    let parts = instruction.name[1..].iter();
    let mut spaces = parts.filter_map(|part| {
        let base = part.split("::").next().unwrap_or(part);
        known.into_iter().find(|space| *space == base)
    });
    spaces.next().unwrap_or("generic")
}

fn lanes(instruction: &Instruction) -> usize {
    [("v2", 2), ("v4", 4), ("v8", 8)]
        .into_iter()
        .find_map(|(part, lanes)| instruction.has(part).then_some(lanes))
        .unwrap_or(1)
}

fn last_type(instruction: &Instruction) -> Outcome<Type> {
    let found = instruction.name.last().and_then(|part| Type::parse(part));
    found.ok_or_else(|| unsupported(instruction))
}

/// The unsigned or, for sign extension, signed type of what is in memory.
fn stored(kind: Type) -> String {
    match kind.kind {
        Kind::Signed => format!("s{}", kind.bits),
        Kind::Predicate => "u8".into(),
        _ => format!("u{}", kind.bits),
    }
}

impl Emitter<'_> {
    /// A statement that sets `a_` to the checked address of so many bytes.
    pub(super) fn address(
        &mut self,
        instruction: &Instruction,
        operand: &Operand,
        space: &str,
        bytes: usize,
    ) -> Outcome<String> {
        let Operand::Address(inner) = operand else {
            return Err(refusal(
                INVALID_PTX,
                format!("PTX: `{}` has no address", instruction.text()),
            ));
        };
        let raw = self.value(inner)?;
        let base = match &**inner {
            Operand::Sum(base, _) => base,
            other => other,
        };
        let check = match space {
            "global" | "const" => "global",
            "shared" => "shared",
            "param" => {
                // Parameters are arrays of the caller; their bounds are the translation's own.
                return Ok(format!("u64 a_ = (u64)({raw});"));
            }
            "local" => "own",
            _ => "generic",
        };
        if let (Operand::Name(name), "generic") = (base, check)
            && let Some(Place::Param(_) | Place::Bytes(_)) = self.place(name)
        {
            return Ok(format!("u64 a_ = (u64)({raw});"));
        }
        let raw = if check == "shared" { format!("(u32)({raw})") } else { format!("(u64)({raw})") };
        let mode = match instruction.name[0].as_str() {
            "st" | "cp" => "WRITE",
            "atom" | "red" => "ATOMIC",
            _ => "READ",
        };
        let site = self.sites;
        self.sites += 1;
        let text = instruction.text().replace('\\', "\\\\").replace('"', "\\\"");
        Ok(format!("u64 a_ = {check}(c, t, {raw}, {bytes}, {site}, {mode}, \"{text}\");"))
    }

    pub(super) fn load(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = last_type(instruction)?;
        let count = lanes(instruction);
        let bytes = kind.bits / 8;
        let [to, from] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let mut code = self.address(instruction, from, space(instruction), bytes * count)?;
        let targets: Vec<&Operand> = match to {
            Operand::List(all) => all.iter().collect(),
            one => vec![one],
        };
        if targets.len() != count {
            return Err(refusal(INVALID_PTX, format!("PTX: `{}`", instruction.text())));
        }
        let raw =
            Type { kind: if kind.kind == Kind::Signed { kind.kind } else { Kind::Bits }, ..kind };
        // All lanes are read before any is written: a target may be the address.
        for at in 0..count {
            let stored = stored(kind);
            code += &format!(" {stored} l{at}_ = LOAD({stored}, a_ + {});", at * bytes);
        }
        for (at, target) in targets.into_iter().enumerate() {
            code += &format!(" {}", self.write(target, raw, &format!("l{at}_"))?);
        }
        Ok(code)
    }

    pub(super) fn store(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = last_type(instruction)?;
        let count = lanes(instruction);
        let bytes = kind.bits / 8;
        let [to, from] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let mut code = self.address(instruction, to, space(instruction), bytes * count)?;
        let sources: Vec<&Operand> = match from {
            Operand::List(all) => all.iter().collect(),
            one => vec![one],
        };
        if sources.len() != count {
            return Err(refusal(INVALID_PTX, format!("PTX: `{}`", instruction.text())));
        }
        for (at, source) in sources.into_iter().enumerate() {
            let value = self.value(source)?;
            let stored = format!("u{}", kind.bits);
            code += &format!(" STORE({stored}, a_ + {}, {value});", at * bytes);
        }
        Ok(code)
    }

    pub(super) fn convert_address(&mut self, instruction: &Instruction) -> Outcome<String> {
        let [to, from] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let from = self.value(from)?;
        let value = match (instruction.has("shared"), instruction.has("to")) {
            (false, _) => from,
            (true, true) => format!("({from}) - (u64)c->shared"),
            (true, false) => format!("({from}) + (u64)c->shared"),
        };
        self.write(to, unsigned(64), &value)
    }

    pub(super) fn is_space(&mut self, instruction: &Instruction) -> Outcome<String> {
        let [to, from] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let from = self.value(from)?;
        let shared = format!("((u64)({from}) - (u64)c->shared < c->shared_len)");
        let local = format!("((u64)({from}) - t->stack_lo < t->stack_len)");
        let value = match space(instruction) {
            "shared" => shared,
            "local" => local,
            "global" => format!("(!{shared} && !{local})"),
            _ => return Err(unsupported(instruction)),
        };
        self.write(to, super::types::PREDICATE, &value)
    }

    /// `atom` and `red`. Threads never run at the same time, so that a plain update is atomic.
    pub(super) fn atomic(&mut self, instruction: &Instruction) -> Outcome<String> {
        if lanes(instruction) > 1 {
            return Err(unsupported(instruction));
        }
        let kind = last_type(instruction)?;
        let answers = instruction.name[0] == "atom";
        let (to, rest) = match (answers, instruction.operands.as_slice()) {
            (true, [to, rest @ ..]) => (Some(to), rest),
            (false, rest) => (None, rest),
            _ => return Err(unsupported(instruction)),
        };
        let (at, values) = rest.split_first().ok_or_else(|| unsupported(instruction))?;
        let mut code = self.address(instruction, at, space(instruction), kind.bits / 8)?;
        let bits = unsigned(kind.bits);
        code += &format!(" u{0} o_ = LOAD(u{0}, a_);", kind.bits);
        let first = values.first().ok_or_else(|| unsupported(instruction))?;
        let operation = ["add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"]
            .into_iter()
            .find(|operation| instruction.has(operation))
            .ok_or_else(|| unsupported(instruction))?;
        let raw = self.value(first)?;
        let new = match operation {
            "exch" => bits.number(&raw),
            "and" => format!("o_ & {raw}"),
            "or" => format!("o_ | {raw}"),
            "xor" => format!("o_ ^ {raw}"),
            "cas" => {
                let second = values.get(1).ok_or_else(|| unsupported(instruction))?;
                let expected = bits.number(&raw);
                format!("o_ == {expected} ? {} : o_", bits.number(&self.value(second)?))
            }
            "inc" => format!("o_ >= {0} ? 0 : o_ + 1", bits.number(&raw)),
            "dec" => format!("o_ == 0 || o_ > {0} ? {0} : o_ - 1", bits.number(&raw)),
            _ if kind.is_pair() => {
                let element = kind.element();
                let half = |shift: u32| {
                    let old = element.number(&format!("(o_ >> {shift})"));
                    let other = element.number(&format!("(({raw}) >> {shift})"));
                    let value = match operation {
                        "add" => format!("{old} + {other}"),
                        _ => format!("{operation}_f32({old}, {other})"),
                    };
                    format!("(u32){}", element.to_bits(&value))
                };
                format!("{} | {} << 16", half(0), half(16))
            }
            "add" if kind.is_integer() => format!("o_ + {}", bits.number(&raw)),
            "add" => kind.to_bits(&format!("{} + {}", kind.number("o_"), kind.number(&raw))),
            _ if kind.is_integer() => {
                let (old, other) = (kind.number("o_"), kind.number(&raw));
                let sign = if operation == "min" { '<' } else { '>' };
                format!("{old} {sign} {other} ? {old} : {other}")
            }
            _ => {
                let name = if kind.bits == 64 { "f64" } else { "f32" };
                let (old, other) = (kind.number("o_"), kind.number(&raw));
                kind.to_bits(&format!("{operation}_{name}({old}, {other})"))
            }
        };
        code += &format!(" STORE(u{}, a_, {new});", kind.bits);
        if let Some(to) = to {
            code += &format!(" {}", self.write(to, bits, "o_")?);
        }
        Ok(code)
    }

    /// `cp.async`: the copy is done at once, which is one of the times that it may be done.
    pub(super) fn copy_async(&mut self, instruction: &Instruction) -> Outcome<String> {
        if instruction.has("commit_group")
            || instruction.has("wait_group")
            || instruction.has("wait_all")
        {
            return Ok(";".into());
        }
        let [to, from, size, rest @ ..] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        if instruction.has("bulk") {
            return Err(unsupported(instruction));
        }
        let Operand::Number(super::Number::Integer(bytes)) = size else {
            return Err(unsupported(instruction));
        };
        let bytes = *bytes as usize;
        let target = self.address(instruction, to, "shared", bytes)?;
        let source = self.address(instruction, from, "global", bytes)?;
        let source = source.replacen("u64 a_", "u64 b_", 1);
        let used = match rest.first() {
            Some(used) => format!("(u32)({})", self.value(used)?),
            None => bytes.to_string(),
        };
        Ok(format!(
            "{target} u32 n_ = {used}; if (n_) {{ {source} memcpy((void *)a_, (const void *)b_, \
             n_); }} memset((char *)a_ + n_, 0, {bytes} - n_);"
        ))
    }
}
