//! Arithmetic, comparison and logic.

use super::super::parse::{Instruction, Operand};
use super::convert::mode;
use super::types::{Kind, PREDICATE, Type, unsigned};
use super::{Emitter, unsupported};
use crate::api::Outcome;

/// Carries in and out: add, subtract and multiply-add with `cc`.
fn carries(instruction: &Instruction) -> bool {
    instruction.has("cc") || matches!(instruction.name[0].as_str(), "addc" | "subc" | "madc")
}

impl Emitter<'_> {
    /// The type that ends the instruction's name.
    pub(super) fn own_type(&self, instruction: &Instruction) -> Outcome<Type> {
        let found = instruction.name.iter().rev().find_map(|part| Type::parse(part));
        found.ok_or_else(|| unsupported(instruction))
    }

    /// Instructions whose operands and result have one type.
    pub(super) fn uniform(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let (to, from) =
            instruction.operands.split_first().ok_or_else(|| unsupported(instruction))?;
        if kind.is_pair() {
            let element = kind.element();
            let mut halves = Vec::new();
            for shift in [0, 16] {
                let values = from.iter().map(|operand| {
                    let bits = self.value(operand)?;
                    Ok(element.number(&format!("(({bits}) >> {shift})")))
                });
                let values: Vec<String> = values.collect::<Outcome<_>>()?;
                let value = self.float(instruction, element, &values)?;
                halves.push(format!("(u32){}", element.to_bits(&value)));
            }
            let value = format!("{} | {} << 16", halves[0], halves[1]);
            return self.write(to, unsigned(32), &value);
        }
        if carries(instruction) {
            return self.carried(instruction, kind, to, from);
        }
        let values: Vec<String> =
            from.iter().map(|operand| self.read(operand, kind)).collect::<Outcome<_>>()?;
        if !kind.is_integer() && kind != PREDICATE {
            let value = self.float(instruction, kind, &values)?;
            return self.write(to, kind, &value);
        }
        let value = self.integer(instruction, kind, &values)?;
        self.write(to, kind, &value)
    }

    fn float(&self, instruction: &Instruction, kind: Type, values: &[String]) -> Outcome<String> {
        let flush = instruction.has("ftz") && kind.bits == 32;
        let values: Vec<String> = values
            .iter()
            .map(|value| if flush { format!("Z({value})") } else { value.clone() })
            .collect();
        let suffix = if kind.bits == 64 { "f64" } else { "f32" };
        let f = if kind.bits == 64 { "" } else { "f" };
        let name = instruction.name[0].as_str();
        let mode = if kind.is_half() { 0 } else { mode(instruction) };
        let rounded = |function: &str, arguments: &[&str]| {
            format!("{function}_{suffix}({}, {mode})", arguments.join(", "))
        };
        let value = match (name, values.as_slice()) {
            ("add", [a, b]) if mode == 0 => format!("{a} + {b}"),
            ("add", [a, b]) => rounded("add", &[a, b]),
            ("sub", [a, b]) if mode == 0 => format!("{a} - {b}"),
            ("sub", [a, b]) => rounded("add", &[a, &format!("-{b}")]),
            ("mul", [a, b]) if mode == 0 => format!("{a} * {b}"),
            ("mul", [a, b]) => rounded("mul", &[a, b]),
            // A half's product is exact as a double; the sum is rounded once.
            ("fma" | "mad", [a, b, c]) if kind.is_half() => {
                format!("odd((f64){a} * (f64){b} + (f64){c})")
            }
            ("fma" | "mad", [a, b, c]) if mode == 0 => format!("fma{f}({a}, {b}, {c})"),
            ("fma" | "mad", [a, b, c]) => rounded("fma", &[a, b, c]),
            ("div", [a, b]) if mode == 0 => format!("{a} / {b}"),
            ("div", [a, b]) => rounded("div", &[a, b]),
            ("rcp", [a]) if mode == 0 => format!("1 / {a}"),
            ("rcp", [a]) => rounded("div", &["1", a]),
            ("sqrt", [a]) if mode == 0 => format!("sqrt{f}({a})"),
            ("sqrt", [a]) => rounded("sqrt", &[a]),
            ("rsqrt", [a]) => format!("1 / sqrt{f}({a})"),
            ("ex2", [a]) => format!("exp2{f}({a})"),
            ("lg2", [a]) => format!("log2{f}({a})"),
            ("sin", [a]) => format!("sin{f}({a})"),
            ("cos", [a]) => format!("cos{f}({a})"),
            ("tanh", [a]) => format!("tanh{f}({a})"),
            ("neg", [a]) => format!("-{a}"),
            ("abs", [a]) => format!("fabs{f}({a})"),
            ("copysign", [a, b]) => format!("copysign{f}({b}, {a})"),
            ("min" | "max", [a, b]) => {
                let nan = if instruction.has("NaN") { "n" } else { "" };
                if instruction.has("xorsign") {
                    return Err(unsupported(instruction));
                }
                format!("{nan}{name}_{suffix}({a}, {b})")
            }
            ("min" | "max", [a, b, c]) => {
                let nan = if instruction.has("NaN") { "n" } else { "" };
                format!("{nan}{name}_{suffix}({nan}{name}_{suffix}({a}, {b}), {c})")
            }
            _ => return Err(unsupported(instruction)),
        };
        let value = if flush { format!("Z({value})") } else { value };
        let value = if instruction.has("relu") { format!("relu({value})") } else { value };
        Ok(match (instruction.has("sat"), kind.bits) {
            (false, _) => value,
            (true, 64) => format!("satd({value})"),
            (true, _) => format!("sat({value})"),
        })
    }

    fn integer(&self, instruction: &Instruction, kind: Type, values: &[String]) -> Outcome<String> {
        let bits = kind.bits;
        // Unsigned arithmetic wraps; 16 bits would be promoted to a signed type.
        let wrap = |value: &str| format!("(u{}){value}", bits.max(32));
        let signed = kind.kind == Kind::Signed;
        let name = instruction.name[0].as_str();
        if kind == PREDICATE {
            return match (name, values) {
                ("and", [a, b]) => Ok(format!("{a} & {b}")),
                ("or", [a, b]) => Ok(format!("{a} | {b}")),
                ("xor", [a, b]) => Ok(format!("{a} ^ {b}")),
                ("not", [a]) => Ok(format!("!{a}")),
                _ => Err(unsupported(instruction)),
            };
        }
        Ok(match (name, values) {
            ("add" | "sub", [a, b]) => {
                let sign = if name == "add" { '+' } else { '-' };
                if instruction.has("sat") {
                    format!("CLAMP((s64){a} {sign} (s64){b}, INT32_MIN, INT32_MAX)")
                } else {
                    format!("{} {sign} {}", wrap(a), wrap(b))
                }
            }
            ("mul", [a, b]) if instruction.has("hi") => self.high(kind, a, b),
            ("mad", [a, b, c]) if instruction.has("hi") => {
                format!("(u{bits})({}) + (u{bits}){c}", self.high(kind, a, b))
            }
            ("mul", [a, b]) => format!("{} * {}", wrap(a), wrap(b)),
            ("mad", [a, b, c]) => format!("{} * {} + {}", wrap(a), wrap(b), wrap(c)),
            ("mul24", [a, b]) => format!("({a} << 8 >> 8) * ({b} << 8 >> 8)"),
            ("mad24", [a, b, c]) => format!("({a} << 8 >> 8) * ({b} << 8 >> 8) + {c}"),
            // Division by zero is all ones there; here it would end the process.
            ("div", [a, b]) if signed => {
                format!("({b} == 0 ? -1 : {b} == -1 ? (s64)(0 - (u64){a}) : {a} / {b})")
            }
            ("div", [a, b]) => format!("({b} == 0 ? ~0ull : {a} / {b})"),
            ("rem", [a, b]) if signed => format!("({b} == 0 ? {a} : {b} == -1 ? 0 : {a} % {b})"),
            ("rem", [a, b]) => format!("({b} == 0 ? {a} : {a} % {b})"),
            ("neg", [a]) => format!("0 - {}", wrap(a)),
            ("abs", [a]) => format!("({a} < 0 ? 0 - {} : {})", wrap(a), wrap(a)),
            ("min", [a, b]) => format!("({a} < {b} ? {a} : {b})"),
            ("max", [a, b]) => format!("({a} > {b} ? {a} : {b})"),
            ("sad", [a, b, c]) => format!("({a} > {b} ? {a} - {b} : {b} - {a}) + {c}"),
            ("and", [a, b]) => format!("{a} & {b}"),
            ("or", [a, b]) => format!("{a} | {b}"),
            ("xor", [a, b]) => format!("{a} ^ {b}"),
            ("not", [a]) => format!("~{a}"),
            ("cnot", [a]) => format!("{a} == 0"),
            ("lop3", [a, b, c, table]) => format!("lop3({a}, {b}, {c}, {table})"),
            ("prmt", [a, b, c]) if instruction.name.len() == 2 => format!("prmt({a}, {b}, {c})"),
            ("brev", [a]) => format!("brev{bits}({a})"),
            ("shf", [a, b, n]) => {
                let side = if instruction.has("l") { 'l' } else { 'r' };
                let n = if instruction.has("wrap") {
                    format!("({n} & 31)")
                } else {
                    format!("CLAMP({n}, 0u, 32u)")
                };
                format!("shf_{side}({a}, {b}, {n})")
            }
            _ => return Err(unsupported(instruction)),
        })
    }

    fn high(&self, kind: Type, a: &str, b: &str) -> String {
        let sign = if kind.kind == Kind::Signed { 's' } else { 'u' };
        let wide = kind.bits * 2;
        format!("(({sign}{wide}){a} * ({sign}{wide}){b} >> {})", kind.bits)
    }

    /// Wider arithmetic than a register: the carry of one instruction is an input of the next.
    fn carried(
        &mut self,
        instruction: &Instruction,
        kind: Type,
        to: &Operand,
        from: &[Operand],
    ) -> Outcome<String> {
        let bits = unsigned(kind.bits);
        let name = instruction.name[0].as_str();
        let values: Vec<String> =
            from.iter().map(|operand| self.read(operand, bits)).collect::<Outcome<_>>()?;
        let takes = if name.ends_with('c') { "cc" } else { "0" };
        let (sum, out) = match (name, values.as_slice()) {
            ("add" | "addc", [a, b]) => (format!("(u128){a} + {b} + {takes}"), "1"),
            ("sub" | "subc", [a, b]) => (format!("(u128){a} - {b} - {takes}"), "1"),
            ("mad" | "madc", [a, b, c]) => {
                let product = if instruction.has("hi") {
                    self.high(if kind.kind == Kind::Signed { kind } else { bits }, a, b)
                } else {
                    format!("(u{}){a} * {b}", kind.bits)
                };
                (format!("(u128)(u{})({product}) + {c} + {takes}", kind.bits), "1")
            }
            _ => return Err(unsupported(instruction)),
        };
        let mut code = format!("u128 w_ = {sum};");
        if instruction.has("cc") {
            code += &format!(" cc = (u64)(w_ >> {}) & {out};", kind.bits);
        }
        Ok(format!("{code} {}", self.write(to, bits, "w_")?))
    }

    /// `mul.wide` and `mad.wide`: the result is twice as wide as the factors.
    pub(super) fn wide(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let wide = Type { kind: kind.kind, bits: kind.bits * 2 };
        let (to, from) =
            instruction.operands.split_first().ok_or_else(|| unsupported(instruction))?;
        let (Some(a), Some(b)) = (from.first(), from.get(1)) else {
            return Err(unsupported(instruction));
        };
        let (a, b) = (self.read(a, kind)?, self.read(b, kind)?);
        let mut value = format!("(u64)(({0}){a} * ({0}){b})", wide.c());
        if let Some(c) = from.get(2) {
            value += &format!(" + (u64){}", self.read(c, wide)?);
        }
        self.write(to, wide, &value)
    }

    pub(super) fn shift(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let [to, a, n] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let (a, n, bits) = (self.read(a, kind)?, self.value(n)?, kind.bits);
        let value = match (instruction.name[0].as_str(), kind.kind) {
            ("shl", _) => format!("shl{bits}({a}, (u32){n})"),
            (_, Kind::Signed) => format!("SHR(s{bits}, {a}, (u32){n}, {bits})"),
            _ => format!("SHRU(u{bits}, {a}, (u32){n}, {bits})"),
        };
        self.write(to, kind, &value)
    }

    /// Bit fields and counts, whose operands have several types.
    pub(super) fn bits(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let bits = kind.bits;
        let (to, from) =
            instruction.operands.split_first().ok_or_else(|| unsupported(instruction))?;
        let values: Vec<String> =
            from.iter().map(|operand| self.value(operand)).collect::<Outcome<_>>()?;
        let first = kind.number(values.first().ok_or_else(|| unsupported(instruction))?);
        let (result, value) = match (instruction.name[0].as_str(), values.as_slice()) {
            ("bfe", [_, at, len]) => {
                let sign = if kind.kind == Kind::Signed { 's' } else { 'u' };
                (kind, format!("bfe_{sign}({first}, (u32){at}, (u32){len}, {bits})"))
            }
            ("bfi", [_, base, at, len]) => (
                kind,
                format!("bfi({first}, {}, (u32){at}, (u32){len}, {bits})", kind.number(base)),
            ),
            ("popc", [_]) => (unsigned(32), format!("__builtin_popcountll({first})")),
            ("clz", [_]) => (
                unsigned(32),
                format!("({first} ? __builtin_clzll((u64){first}) - {} : {bits})", 64 - bits),
            ),
            ("bfind", [_]) => {
                let magnitude = if kind.kind == Kind::Signed {
                    format!("(u{bits})({first} < 0 ? ~{first} : {first})")
                } else {
                    first
                };
                let found = format!("63 - __builtin_clzll((u64){magnitude})");
                let found = if instruction.has("shiftamt") {
                    format!("{} - ({found})", bits - 1)
                } else {
                    found
                };
                (unsigned(32), format!("({magnitude} ? {found} : ~0u)"))
            }
            ("dp4a", [a, b, c]) => {
                let signs: Vec<&str> = instruction.name[1..].iter().map(String::as_str).collect();
                let [x, y] = signs.as_slice() else { return Err(unsupported(instruction)) };
                let (x, y) = (u32::from(*x == "s32"), u32::from(*y == "s32"));
                (unsigned(32), format!("(u32)dp4a((u32){a}, (u32){b}, (s32){c}, {x}, {y})"))
            }
            _ => return Err(unsupported(instruction)),
        };
        self.write(to, result, &value)
    }

    /// `setp` and `set`.
    pub(super) fn compare(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let [to, a, b, rest @ ..] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let comparison = instruction.name[1].as_str();
        if kind.is_pair() {
            return self.compare_pair(instruction, kind, to, a, b);
        }
        let flush = |value: String| {
            if instruction.has("ftz") && kind.bits == 32 { format!("Z({value})") } else { value }
        };
        let (a, b) = (flush(self.read(a, kind)?), flush(self.read(b, kind)?));
        let result =
            comparison_of(comparison, kind, &a, &b).ok_or_else(|| unsupported(instruction))?;
        let join = ["and", "or", "xor"].into_iter().find(|join| instruction.has(join));
        let with = match (join, rest.first()) {
            (Some(join), Some(other)) => {
                let sign = match join {
                    "and" => '&',
                    "or" => '|',
                    _ => '^',
                };
                let other = self.read(other, PREDICATE)?;
                Some((sign, other))
            }
            (None, None) => None,
            _ => return Err(unsupported(instruction)),
        };
        let joined = |value: &str| match &with {
            Some((sign, other)) => format!("({value}) {sign} {other}"),
            None => value.to_owned(),
        };
        let code = format!("u8 x_ = {result};");
        if instruction.name[0] == "set" {
            let parts = instruction.name.iter().filter_map(|part| Type::parse(part));
            let to_type = parts.collect::<Vec<_>>()[0];
            let value = joined("x_");
            let value = if to_type.is_integer() {
                format!("({value}) ? ~0ull : 0ull")
            } else {
                format!("({value}) ? 1 : 0")
            };
            return Ok(format!("{code} {}", self.write(to, to_type, &value)?));
        }
        if let Operand::Pair(yes, no) = to {
            let (yes, no) = (Operand::Name(yes.clone()), Operand::Name(no.clone()));
            // Both are computed before either is written: the third operand may be one of them.
            return Ok(format!(
                "{code} u8 y_ = {}, n_ = {}; {} {}",
                joined("x_"),
                joined("!x_"),
                self.write(&yes, PREDICATE, "y_")?,
                self.write(&no, PREDICATE, "n_")?,
            ));
        }
        Ok(format!("{code} {}", self.write(to, PREDICATE, &joined("x_"))?))
    }

    fn compare_pair(
        &mut self,
        instruction: &Instruction,
        kind: Type,
        to: &Operand,
        a: &Operand,
        b: &Operand,
    ) -> Outcome<String> {
        let element = kind.element();
        let (a, b) = (self.value(a)?, self.value(b)?);
        let lane = |shift: u32| {
            let half = |bits: &str| element.number(&format!("(({bits}) >> {shift})"));
            comparison_of(&instruction.name[1], element, &half(&a), &half(&b))
        };
        let (Some(low), Some(high)) = (lane(0), lane(16)) else {
            return Err(unsupported(instruction));
        };
        match (instruction.name[0].as_str(), to) {
            ("setp", Operand::Pair(one, other)) => {
                let (one, other) = (Operand::Name(one.clone()), Operand::Name(other.clone()));
                Ok(format!(
                    "u8 x_ = {low}, y_ = {high}; {} {}",
                    self.write(&one, PREDICATE, "x_")?,
                    self.write(&other, PREDICATE, "y_")?,
                ))
            }
            ("set", _) => {
                let parts = instruction.name.iter().filter_map(|part| Type::parse(part));
                let to_type = parts.collect::<Vec<_>>()[0];
                let one = match to_type.kind {
                    Kind::PairF => 0x3c00,
                    Kind::PairBrain => 0x3f80,
                    _ => 0xffff,
                };
                let value = format!("(({low}) ? {one}u : 0u) | (({high}) ? {one}u : 0u) << 16");
                self.write(to, unsigned(32), &value)
            }
            _ => Err(unsupported(instruction)),
        }
    }

    pub(super) fn select(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let [to, a, b, which] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let bits = unsigned(kind.bits);
        let (a, b) = (self.value(a)?, self.value(b)?);
        let which = match instruction.name[0].as_str() {
            "selp" => self.read(which, PREDICATE)?,
            _ => format!("{} >= 0", self.read(which, kind)?),
        };
        self.write(to, bits, &format!("{which} ? {} : {}", bits.number(&a), bits.number(&b)))
    }

    pub(super) fn test(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let [to, a] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let a = self.read(a, kind)?;
        let value = match instruction.name[1].as_str() {
            "finite" => format!("isfinite({a})"),
            "infinite" => format!("isinf({a})"),
            "number" => format!("!isnan({a})"),
            "notanumber" => format!("isnan({a})"),
            "normal" => format!("isnormal({a})"),
            "subnormal" => format!("fpclassify({a}) == FP_SUBNORMAL"),
            _ => return Err(unsupported(instruction)),
        };
        self.write(to, PREDICATE, &value)
    }
}

/// A comparison as an expression of C.
fn comparison_of(name: &str, kind: Type, a: &str, b: &str) -> Option<String> {
    let sign = |name: &str| {
        Some(match name {
            "eq" => "==",
            "ne" => "!=",
            "lt" | "lo" => "<",
            "le" | "ls" => "<=",
            "gt" | "hi" => ">",
            "ge" | "hs" => ">=",
            _ => return None,
        })
    };
    if kind.is_integer() || kind == PREDICATE {
        return Some(format!("{a} {} {b}", sign(name)?));
    }
    Some(match name {
        "num" => format!("!({a} != {a}) && !({b} != {b})"),
        "nan" => format!("{a} != {a} || {b} != {b}"),
        "ne" => format!("({a} < {b} || {a} > {b})"),
        "equ" => format!("!({a} < {b} || {a} > {b})"),
        "neu" => format!("{a} != {b}"),
        "ltu" => format!("!({a} >= {b})"),
        "leu" => format!("!({a} > {b})"),
        "gtu" => format!("!({a} <= {b})"),
        "geu" => format!("!({a} < {b})"),
        _ => format!("{a} {} {b}", sign(name)?),
    })
}
