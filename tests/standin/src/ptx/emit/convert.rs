//! `cvt`: between integers, floats, and their roundings.

use super::super::parse::Instruction;
use super::types::{F32, Kind, Type};
use super::{Emitter, unsupported};
use crate::api::Outcome;

/// The rounding that a name asks for, as the mode of the prelude: 0 is to nearest.
pub(super) fn mode(instruction: &Instruction) -> u32 {
    let modes = [("rm", 1), ("rp", 2), ("rz", 3)];
    modes.into_iter().find_map(|(part, mode)| instruction.has(part).then_some(mode)).unwrap_or(0)
}

/// The function of C that rounds to an integer, where the name asks for it.
fn to_integer(instruction: &Instruction, double: bool) -> Option<String> {
    let names = [("rni", "rint"), ("rzi", "trunc"), ("rmi", "floor"), ("rpi", "ceil")];
    let found = names.into_iter().find_map(|(part, name)| instruction.has(part).then_some(name));
    found.map(|name| if double { name.into() } else { format!("{name}f") })
}

impl Emitter<'_> {
    pub(super) fn convert(&mut self, instruction: &Instruction) -> Outcome<String> {
        let mut types = instruction.name.iter().filter_map(|part| Type::parse(part));
        let (Some(to_type), Some(from_type)) = (types.next(), types.next()) else {
            return Err(unsupported(instruction));
        };
        let operands = instruction.operands.as_slice();
        if to_type.is_pair() {
            // The first source becomes the upper half.
            let [to, upper, lower] = operands else { return Err(unsupported(instruction)) };
            if from_type != F32 {
                return Err(unsupported(instruction));
            }
            let element = to_type.element();
            let (upper, lower) = (self.read(upper, F32)?, self.read(lower, F32)?);
            let half = |value: &str| self.narrow(instruction, element, value);
            let value = format!("(u32){} << 16 | {}", half(&upper)?, half(&lower)?);
            return self.write(to, super::types::unsigned(32), &value);
        }
        let [to, from] = operands else { return Err(unsupported(instruction)) };
        if instruction.has("tf32") {
            let value = format!("tf32({})", self.value(from)?);
            return self.write(to, super::types::unsigned(32), &value);
        }
        if !from_type.is_integer() && instruction.has("ftz") && from_type.bits == 32 {
            let flushed = format!("Z({})", self.read(from, from_type)?);
            return self.converted(instruction, to, to_type, from_type, &flushed);
        }
        let value = self.read(from, from_type)?;
        self.converted(instruction, to, to_type, from_type, &value)
    }

    fn converted(
        &mut self,
        instruction: &Instruction,
        to: &super::Operand,
        to_type: Type,
        from_type: Type,
        value: &str,
    ) -> Outcome<String> {
        let double = from_type.bits == 64;
        match (to_type.is_integer(), from_type.is_integer()) {
            (true, true) => {
                if !instruction.has("sat") {
                    return self.write(to, to_type, value);
                }
                let (low, high) = limits(to_type);
                let clamped = format!("({})CLAMP((s128){value}, {low}, {high})", to_type.c());
                self.write(to, to_type, &clamped)
            }
            (true, false) => {
                let rounded = match to_integer(instruction, double) {
                    Some(function) => format!("{function}({value})"),
                    None => value.into(),
                };
                let wide = u32::from(to_type.bits == 64);
                let (low, high) = limits(to_type);
                let number = if to_type.kind == Kind::Signed {
                    format!("to_s({rounded}, {low}, {high}, {wide})")
                } else {
                    format!("to_u({rounded}, {high}, {wide})")
                };
                self.write(to, to_type, &number)
            }
            (false, true) => {
                let number = match (mode(instruction), to_type.bits, from_type.kind) {
                    (0, 64, _) => format!("(f64){value}"),
                    (0, 32, _) => format!("(f32){value}"),
                    // A half: exact as a double unless it is wide, and wide ones overflow.
                    (0, _, _) => format!("odd((f64){value})"),
                    (mode, 64, Kind::Signed) => format!("s64_f64({value}, {mode})"),
                    (mode, 32, Kind::Signed) => format!("s64_f32({value}, {mode})"),
                    (mode, 64, _) if from_type.bits < 64 => format!("s64_f64({value}, {mode})"),
                    (mode, 32, _) if from_type.bits < 64 => format!("s64_f32({value}, {mode})"),
                    _ => return Err(unsupported(instruction)),
                };
                self.write(to, to_type, &number)
            }
            (false, false) => self.between_floats(instruction, to, to_type, from_type, value),
        }
    }

    fn between_floats(
        &mut self,
        instruction: &Instruction,
        to: &super::Operand,
        to_type: Type,
        from_type: Type,
        value: &str,
    ) -> Outcome<String> {
        let double = from_type.bits == 64;
        let mut number = match to_integer(instruction, double) {
            Some(function) => format!("{function}({value})"),
            None => value.into(),
        };
        if to_type.is_half() {
            if double {
                number = format!("odd({number})");
            }
            if instruction.has("sat") {
                number = format!("sat({number})");
            }
            let bits = self.narrow(instruction, to_type, &number)?;
            return self.write(to, super::types::unsigned(16), &bits);
        }
        if to_type.bits == 32 && double {
            number = match mode(instruction) {
                0 => format!("(f32)({number})"),
                mode => format!("nar_f32({number}, {mode})"),
            };
        }
        if to_type.bits == 32 && instruction.has("ftz") {
            number = format!("Z({number})");
        }
        if instruction.has("sat") {
            number = format!("{}({number})", if to_type.bits == 64 { "satd" } else { "sat" });
        }
        self.write(to, to_type, &number)
    }

    /// The bits of a single rounded to a half.
    fn narrow(&self, instruction: &Instruction, half: Type, value: &str) -> Outcome<String> {
        let value =
            if instruction.has("relu") { format!("relu({value})") } else { value.to_owned() };
        let function = match (half.kind, mode(instruction)) {
            (Kind::Brain, 0) => "BB",
            (Kind::Brain, 3) => "BBz",
            (Kind::F, 0) => "HB",
            (Kind::F, 1) => "HBm",
            (Kind::F, 2) => "HBp",
            (Kind::F, 3) => "HBz",
            _ => return Err(unsupported(instruction)),
        };
        Ok(format!("{function}({value})"))
    }
}

/// The smallest and largest number of an integer type, as C.
fn limits(kind: Type) -> (String, String) {
    let bits = kind.bits as u32;
    if kind.kind == Kind::Signed {
        let high = (1_u64 << (bits - 1)) - 1;
        (format!("(-{high}ll - 1)"), format!("{high}ll"))
    } else {
        ("0".into(), format!("{}ull", u64::MAX >> (64 - bits)))
    }
}
