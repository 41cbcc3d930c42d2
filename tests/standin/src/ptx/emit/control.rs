//! Moves, branches, calls, barriers and what threads of a warp do together.

use super::super::parse::{Instruction, Operand};
use super::types::{PREDICATE, Type, unsigned};
use super::{Emitter, mangle, unsupported};
use crate::api::Outcome;

/// A register that the hardware provides, as an expression of C.
pub(super) fn special(name: &str) -> Option<&'static str> {
    Some(match name {
        "%tid.x" => "t->tid[0]",
        "%tid.y" => "t->tid[1]",
        "%tid.z" => "t->tid[2]",
        "%ntid.x" => "c->ntid[0]",
        "%ntid.y" => "c->ntid[1]",
        "%ntid.z" => "c->ntid[2]",
        "%ctaid.x" => "c->ctaid[0]",
        "%ctaid.y" => "c->ctaid[1]",
        "%ctaid.z" => "c->ctaid[2]",
        "%nctaid.x" => "c->nctaid[0]",
        "%nctaid.y" => "c->nctaid[1]",
        "%nctaid.z" => "c->nctaid[2]",
        "%laneid" => "t->lane",
        "%warpid" => "t->warp",
        "%nwarpid" => "((c->ntid[0] * c->ntid[1] * c->ntid[2] + 31) / 32)",
        "%smid" | "%gridid" => "0u",
        "%nsmid" => "132u",
        "WARP_SZ" => "32u",
        "%lanemask_eq" => "(1u << t->lane)",
        "%lanemask_lt" => "((1u << t->lane) - 1)",
        "%lanemask_le" => "(~0u >> (31 - t->lane))",
        "%lanemask_gt" => "~(~0u >> (31 - t->lane))",
        "%lanemask_ge" => "~((1u << t->lane) - 1)",
        "%clock" => "(u32)__builtin_ia32_rdtsc()",
        "%clock64" | "%globaltimer" => "(u64)__builtin_ia32_rdtsc()",
        "%dynamic_smem_size" => "(u32)c->dynamic_len",
        "%total_smem_size" => "(u32)c->shared_len",
        _ => return None,
    })
}

impl Emitter<'_> {
    /// The C of one instruction, without its guard.
    pub(super) fn instruction(&mut self, instruction: &Instruction) -> Outcome<String> {
        let name = instruction.name[0].as_str();
        match name {
            "ld" | "ldu" => self.load(instruction),
            "st" => self.store(instruction),
            "atom" | "red" => self.atomic(instruction),
            "cp" => self.copy_async(instruction),
            "cvta" => self.convert_address(instruction),
            "isspacep" => self.is_space(instruction),
            "mov" => self.move_value(instruction),
            "cvt" => self.convert(instruction),
            "mul" | "mad" if instruction.has("wide") => self.wide(instruction),
            "shl" | "shr" => self.shift(instruction),
            "bfe" | "bfi" | "popc" | "clz" | "bfind" | "dp4a" => self.bits(instruction),
            "setp" | "set" => self.compare(instruction),
            "selp" | "slct" => self.select(instruction),
            "testp" => self.test(instruction),
            "bra" | "brx" => self.branch(instruction),
            "call" => self.call(instruction),
            "ret" => Ok("return;".into()),
            "exit" if self.in_kernel => Ok("return;".into()),
            "trap" | "brkpt" => Ok(format!("c->fail(c, t, LAUNCH_FAILED, 0, 0, \"{name}\");")),
            "bar" | "barrier" => self.barrier(instruction),
            "shfl" => self.shuffle(instruction),
            "vote" | "match" | "redux" => self.together(instruction),
            // Only this lane is known to be here, which is a legal answer.
            "activemask" => {
                let to = instruction.operands.first().ok_or_else(|| unsupported(instruction))?;
                self.write(to, unsigned(32), "1u << t->lane")
            }
            // Threads run one after the other; there is nothing to order, and no cache.
            "membar" | "fence" | "nanosleep" | "prefetch" | "prefetchu" | "discard"
            | "griddepcontrol" => Ok(";".into()),
            _ => self.uniform(instruction),
        }
    }

    fn move_value(&mut self, instruction: &Instruction) -> Outcome<String> {
        let kind = self.own_type(instruction)?;
        let [to, from] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        match (to, from) {
            (Operand::List(parts), from) => {
                let bits = kind.bits / parts.len();
                let mut code = format!("u{} m_ = {};", kind.bits, self.value(from)?);
                for (at, part) in parts.iter().enumerate() {
                    let value = format!("m_ >> {}", at * bits);
                    code += &format!(" {}", self.write(part, unsigned(bits), &value)?);
                }
                Ok(code)
            }
            (to, Operand::List(parts)) => {
                let bits = kind.bits / parts.len();
                let mut value = String::new();
                for (at, part) in parts.iter().enumerate() {
                    let part = self.read(part, unsigned(bits))?;
                    let sign = if at == 0 { "" } else { " | " };
                    value += &format!("{sign}(u{}){part} << {}", kind.bits, at * bits);
                }
                self.write(to, unsigned(kind.bits), &value)
            }
            _ => {
                let raw = if kind == PREDICATE { kind } else { unsigned(kind.bits) };
                let value = self.value(from)?;
                self.write(to, raw, &value)
            }
        }
    }

    fn branch(&mut self, instruction: &Instruction) -> Outcome<String> {
        match instruction.operands.as_slice() {
            [Operand::Name(label)] => Ok(format!("goto {};", mangle("L_", label))),
            [index, Operand::Name(table)] if instruction.has("idx") => {
                let labels = self.targets.get(table).ok_or_else(|| unsupported(instruction))?;
                let mut code = format!("switch ({}) {{", self.value(index)?);
                for (at, label) in labels.iter().enumerate() {
                    code += &format!(" case {at}: goto {};", mangle("L_", label));
                }
                Ok(code + " default: c->fail(c, t, LAUNCH_FAILED, 0, 0, \"brx.idx\"); }")
            }
            _ => Err(unsupported(instruction)),
        }
    }

    fn call(&mut self, instruction: &Instruction) -> Outcome<String> {
        let (returns, rest) = match instruction.operands.as_slice() {
            [Operand::List(returns), rest @ ..] => (returns.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (Some(Operand::Name(name)), arguments) = (rest.first(), rest.get(1)) else {
            return Err(unsupported(instruction));
        };
        if name == "__assertfail" {
            return Ok("c->fail(c, t, ASSERT, 0, 0, \"assert\");".into());
        }
        if name == "vprintf" {
            // What kernels print is lost; the count of arguments is the answer.
            return match returns.first() {
                Some(to) => Ok(format!("STORE(u32, {}, 0);", self.value(to)?)),
                None => Ok(";".into()),
            };
        }
        let known = self.outline.callables.iter().any(|callable| {
            callable.name == *name && !callable.is_kernel && callable.body.is_some()
        });
        if !known {
            return Err(unsupported(instruction));
        }
        let arguments = match arguments {
            Some(Operand::List(arguments)) => arguments.as_slice(),
            _ => &[],
        };
        let mut code = format!("{}(c, t", mangle("f_", name));
        for argument in returns.iter().chain(arguments) {
            code += &format!(", (u8 *){}", self.value(argument)?);
        }
        Ok(code + ");")
    }

    fn barrier(&mut self, instruction: &Instruction) -> Outcome<String> {
        let operands = instruction.operands.as_slice();
        if instruction.has("warp") {
            let mask = operands.first().ok_or_else(|| unsupported(instruction))?;
            return Ok(format!("c->meet(c, t, 9, (u32){}, 0);", self.value(mask)?));
        }
        if instruction.has("cluster") {
            return Err(unsupported(instruction));
        }
        if instruction.has("red") {
            let [to, id, rest @ ..] = operands else { return Err(unsupported(instruction)) };
            let (count, predicate) = match rest {
                [predicate] => ("0".to_owned(), predicate),
                [count, predicate] => (self.value(count)?, predicate),
                _ => return Err(unsupported(instruction)),
            };
            let (id, predicate) = (self.value(id)?, self.read(predicate, PREDICATE)?);
            let came =
                format!("u64 g_ = c->barrier(c, t, (u32){id}, (u32){count}, 1, {predicate});");
            let (kind, value) = if instruction.has("popc") {
                (unsigned(32), "(u32)g_")
            } else if instruction.has("and") {
                (PREDICATE, "(u32)g_ == g_ >> 32")
            } else {
                (PREDICATE, "(u32)g_ != 0")
            };
            return Ok(format!("{came} {}", self.write(to, kind, value)?));
        }
        let value = |at: usize| operands.get(at).map_or(Ok("0".into()), |one| self.value(one));
        let wait = u32::from(!instruction.has("arrive"));
        Ok(format!("c->barrier(c, t, (u32){}, (u32){}, {wait}, 0);", value(0)?, value(1)?))
    }

    fn shuffle(&mut self, instruction: &Instruction) -> Outcome<String> {
        let modes = [("up", 0), ("down", 1), ("bfly", 2), ("idx", 3)];
        let mode = modes.into_iter().find_map(|(part, mode)| instruction.has(part).then_some(mode));
        let [to, a, b, k, mask] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let mode = mode.ok_or_else(|| unsupported(instruction))?;
        let arguments: Vec<String> = [a, b, k, mask]
            .into_iter()
            .map(|one| Ok(format!("(u32){}", self.value(one)?)))
            .collect::<Outcome<_>>()?;
        let code =
            format!("u8 ok_; u32 s_ = shuffle(c, t, {mode}, {}, &ok_);", arguments.join(", "));
        match to {
            Operand::Pair(to, ok) => Ok(format!(
                "{code} {} {}",
                self.write(&Operand::Name(to.clone()), unsigned(32), "s_")?,
                self.write(&Operand::Name(ok.clone()), PREDICATE, "ok_")?,
            )),
            to => Ok(format!("{code} {}", self.write(to, unsigned(32), "s_")?)),
        }
    }

    /// `vote`, `match` and `redux`.
    fn together(&mut self, instruction: &Instruction) -> Outcome<String> {
        let [to, a, mask] = instruction.operands.as_slice() else {
            return Err(unsupported(instruction));
        };
        let mask = format!("(u32){}", self.value(mask)?);
        let meet = |kind: u32, value: &str| {
            format!("const struct gather *g_ = c->meet(c, t, {kind}, {mask}, {value});")
        };
        match instruction.name[0].as_str() {
            "vote" => {
                let came = meet(5, &self.read(a, PREDICATE)?);
                let (kind, value) = match instruction.name.get(2).map(String::as_str) {
                    Some("ballot") => (unsigned(32), "ballot(g_)"),
                    Some("all") => (PREDICATE, "ballot(g_) == g_->mask"),
                    Some("any") => (PREDICATE, "ballot(g_) != 0"),
                    Some("uni") => (PREDICATE, "ballot(g_) == 0 || ballot(g_) == g_->mask"),
                    _ => return Err(unsupported(instruction)),
                };
                Ok(format!("{came} {}", self.write(to, kind, value)?))
            }
            "match" => {
                let kind = self.own_type(instruction)?;
                let value = format!("(u{}){}", kind.bits, self.value(a)?);
                let came = meet(6, &value);
                let same = format!("u32 m_ = match_any(g_, {value});");
                if instruction.has("any") {
                    return Ok(format!("{came} {same} {}", self.write(to, unsigned(32), "m_")?));
                }
                let (to, all) = match to {
                    Operand::Pair(to, all) => (Operand::Name(to.clone()), Some(all.clone())),
                    to => (to.clone(), None),
                };
                let value = "m_ == g_->mask ? m_ : 0";
                let mut code = format!("{came} {same} {}", self.write(&to, unsigned(32), value)?);
                if let Some(all) = all {
                    let all = self.write(&Operand::Name(all), PREDICATE, "m_ == g_->mask")?;
                    code += &format!(" {all}");
                }
                Ok(code)
            }
            _ => {
                let signed = self.own_type(instruction)? == Type::parse("s32").expect("a type");
                let how = match (instruction.name.get(2).map(String::as_str), signed) {
                    (Some("add"), _) => 0,
                    (Some("min"), false) => 1,
                    (Some("max"), false) => 2,
                    (Some("min"), true) => 3,
                    (Some("max"), true) => 4,
                    (Some("and"), _) => 5,
                    (Some("or"), _) => 6,
                    (Some("xor"), _) => 7,
                    _ => return Err(unsupported(instruction)),
                };
                let came = meet(7, &format!("(u32){}", self.value(a)?));
                Ok(format!(
                    "{came} {}",
                    self.write(to, unsigned(32), &format!("reduce(g_, {how})"))?
                ))
            }
        }
    }
}
