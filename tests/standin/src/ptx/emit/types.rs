//! The types that instructions name, and how C reads and writes them as bits.

/// What the bits of a type mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unsigned,
    Signed,
    Bits,
    /// IEEE: 16, 32 or 64 bits.
    F,
    /// The upper half of an IEEE single.
    Brain,
    Predicate,
    /// Two halves in 32 bits.
    PairF,
    PairBrain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) kind: Kind,
    pub(super) bits: usize,
}

pub(super) const F32: Type = Type { kind: Kind::F, bits: 32 };
pub(super) const PREDICATE: Type = Type { kind: Kind::Predicate, bits: 8 };

pub(super) const fn unsigned(bits: usize) -> Type {
    Type { kind: Kind::Unsigned, bits }
}

impl Type {
    /// A part of an instruction's name, where it is a type.
    pub(super) fn parse(part: &str) -> Option<Self> {
        let (kind, bits) = match part {
            "pred" => return Some(PREDICATE),
            "f16x2" => (Kind::PairF, 32),
            "bf16x2" => (Kind::PairBrain, 32),
            "bf16" => (Kind::Brain, 16),
            "tf32" => (Kind::Bits, 32),
            _ => {
                let kind = match part.as_bytes().first()? {
                    b'u' => Kind::Unsigned,
                    b's' => Kind::Signed,
                    b'b' => Kind::Bits,
                    b'f' => Kind::F,
                    _ => return None,
                };
                let bits: usize = part[1..].parse().ok()?;
                if ![8, 16, 32, 64].contains(&bits) || (kind == Kind::F && bits == 8) {
                    return None;
                }
                (kind, bits)
            }
        };
        Some(Self { kind, bits })
    }

    pub(super) fn is_integer(self) -> bool {
        matches!(self.kind, Kind::Unsigned | Kind::Signed | Kind::Bits)
    }

    /// The element of a pair, or the type itself.
    pub(super) fn element(self) -> Self {
        match self.kind {
            Kind::PairF => Self { kind: Kind::F, bits: 16 },
            Kind::PairBrain => Self { kind: Kind::Brain, bits: 16 },
            _ => self,
        }
    }

    pub(super) fn is_pair(self) -> bool {
        matches!(self.kind, Kind::PairF | Kind::PairBrain)
    }

    pub(super) fn is_half(self) -> bool {
        !self.is_integer() && self.bits == 16
    }

    /// The C type of the numbers. Halves are computed with as singles.
    pub(super) fn c(self) -> String {
        match self.kind {
            Kind::Signed => format!("s{}", self.bits),
            Kind::F if self.bits == 64 => "f64".into(),
            Kind::F | Kind::Brain => "f32".into(),
            Kind::Predicate => "u8".into(),
            _ => format!("u{}", self.bits),
        }
    }

    /// The number that bits are.
    pub(super) fn number(self, bits: &str) -> String {
        match (self.kind, self.bits) {
            (Kind::F, 64) => format!("D({bits})"),
            (Kind::F, 32) => format!("F((u32)({bits}))"),
            (Kind::F, _) => format!("H((u16)({bits}))"),
            (Kind::Brain, _) => format!("B((u16)({bits}))"),
            (Kind::Predicate, _) => format!("(({bits}) != 0)"),
            _ => format!("(({})({bits}))", self.c()),
        }
    }

    /// The bits of a number.
    pub(super) fn to_bits(self, value: &str) -> String {
        match (self.kind, self.bits) {
            (Kind::F, 64) => format!("DB({value})"),
            (Kind::F, 32) => format!("FB({value})"),
            (Kind::F, _) => format!("HB({value})"),
            (Kind::Brain, _) => format!("BB({value})"),
            (Kind::Predicate, _) => format!("(u8)(({value}) != 0)"),
            _ => format!("({})({value})", self.c()),
        }
    }
}
